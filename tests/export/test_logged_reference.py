"""The reference of a request log counts as the server does: each request once, and all of its candidates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from contract.bundle import GOLDEN, VOCABULARY, open_bundle
from contract.calibration import Calibration, Calibrator
from contract.golden import read_golden
from contract.pseudonyms import Pseudonymizer
from contract.reference import Reference
from contract.request_log import LoggedCandidate, LogLine
from contract.schema import FeatureSchema
from contract.vocabulary import Vocabulary, build_vocabulary, open_vocabulary
from export.logged_reference import measure_logged
from tests.support.small_bundle import FIELDS, TOKENS, write_small_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("small") / "bundle")


@pytest.fixture(autouse=True)
def _few_requests_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.logged_reference.MIN_REQUESTS", 2)


def line(context: dict[str, Any], *candidates: tuple[dict[str, Any], float]) -> LogLine:
    logged = [
        LoggedCandidate(row, str(row), features, 0.1, -2.2, inclusion)
        for row, (features, inclusion) in enumerate(candidates)
    ]
    return LogLine(time="", score_id="", request_id="", model="", version="", context=context, candidates=logged)


def measured(bundle: Path, lines: Sequence[LogLine]) -> Reference | None:
    opened = open_bundle(bundle)
    calibrator = Calibrator(opened.manifest.calibration, None, FIELDS)
    return measure_logged(bundle, lines, FIELDS, vocabularies_of(bundle), calibrator)


def vocabularies_of(bundle: Path) -> dict[str, Vocabulary]:
    return {name: open_vocabulary(bundle / VOCABULARY, name) for name in TOKENS}


def test_a_request_counts_once_and_a_candidate_counts_for_those_that_were_not_logged(bundle: Path) -> None:
    item = {"item": "4001", "cost": "free", "price": 2.0}
    lines = [
        line({"user": "u1", "age": 30}, (item, 1.0), (item | {"item": "new", "price": None}, 0.25)),
        line({"user": "nobody"}, *[(item, 1.0)] * 3),
    ]
    reference = measured(bundle, lines)
    assert reference is not None
    assert reference.rows == 5
    assert reference.categorical["user"].unknown == 0.5
    assert reference.categorical["weekday"].missing == 1
    assert reference.numeric["age"].missing == 0.5
    assert reference.categorical["item"].unknown == pytest.approx(4 / 8)
    assert reference.numeric["price"].missing == pytest.approx(4 / 8)
    assert max(reference.predicted.shares) >= 4 / 8


def test_the_probabilities_are_those_of_the_server_for_whole_requests(bundle: Path) -> None:
    golden = read_golden(bundle / GOLDEN)
    lines = [line(request.context, *[(one.features, 1.0) for one in request.candidates]) for request in golden] * 5
    reference = measured(bundle, lines)
    assert reference is not None
    ctr = np.array([value for request in golden for value in request.ctr])
    found = np.bincount(np.searchsorted(reference.predicted.edges, ctr)) / len(ctr)
    assert reference.predicted.shares == pytest.approx(found.tolist())


def test_what_the_model_cannot_read_is_left_out_as_the_server_does(bundle: Path) -> None:
    good = ({"item": "4001", "price": 2.0}, 1.0)
    bad = ({"item": "4001", "price": "cheap"}, 1.0)
    lines = [line({"user": "u1"}, good, bad), line({"user": "u2"}, good), line({"age": "old"}, good), line({}, bad)]
    reference = measured(bundle, lines)
    assert reference is not None
    assert reference.rows == 2
    assert measured(bundle, lines[1:]) is None


def test_logged_pseudonyms_are_looked_up_as_they_are(bundle: Path) -> None:
    pseudonyms = Pseudonymizer(b"a key of at least 16 bytes")
    user = msgspec.structs.replace(FIELDS.fields[0], pseudonym="hmac")
    schema = FeatureSchema((user, *FIELDS.fields[1:]))
    vocabularies = vocabularies_of(bundle) | {"user": build_vocabulary([pseudonyms.pseudonym("u1")])}
    item = ({"item": "4001"}, 1.0)
    users = [pseudonyms.pseudonym("u1"), pseudonyms.pseudonym("u2"), "u1"]  # The last one is from an earlier model.
    lines = [line({"user": user}, item) for user in users]
    reference = measure_logged(bundle, lines, schema, vocabularies, Calibrator(Calibration(), None, schema))
    assert reference is not None
    assert (reference.rows, reference.categorical["user"].unknown) == (2, 0.5)
