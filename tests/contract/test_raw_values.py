"""Raw values: the values in golden requests, load tests and the example request become tokens of the vocabulary."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bundle import Bundle, Manifest
from contract.calibration import Calibration, Calibrator
from contract.encode import Encoder
from contract.golden import GoldenCandidate, GoldenRequest, write_golden
from contract.raw_values import sources
from contract.schema import FeatureSchema, Field
from contract.tokens import log_square, signed_log1p
from contract.vocabulary import build_vocabulary
from export.golden import draw_golden
from loadtest.openloop.bodies import Requests
from service.api.example import example_request
from tests.support.examples import examples

CONTEXT = (
    Field("user", "context"),
    Field("hour", "context", source="at", transform="hour", timezone="Asia/Kolkata"),
    Field("weekday", "context", source="at", transform="weekday", timezone="Asia/Kolkata"),
    Field("day", "context", source="at", transform="day", missing=("-1",)),
    Field("count", "context", transform="log_square", missing=("-1",)),
    Field("visits", "context", transform="log_square", source="n_visits"),
    Field("visits_log", "context", "numeric", 2.0, 1.0, transform="log1p", source="n_visits", seen=(0.0, 1e6)),
)
CANDIDATE = (
    Field("ad", "candidate"),
    Field("age", "candidate", source="made", transform="hour"),
    Field("made", "candidate", "numeric", 1.7e9, 1e6),
    Field("price", "candidate", "numeric", -3.0, 0.5, transform="log1p"),
)
SCHEMA = FeatureSchema((*CONTEXT, *CANDIDATE))
# A log of three days.
TOKENS = {
    "user": ["u1", "u2"],
    "hour": ["8", "9", "23"],
    "weekday": ["5", "6", "7"],
    "day": ["30", "31", "1"],
    "count": ["SP0", "SP2", "1", "7", "90"],
    "visits": ["SP1", "4"],
    "ad": ["a1", "a2", "a3"],
    "age": ["0", "12"],
}
LOOKUP = {name: build_vocabulary(tokens) for name, tokens in TOKENS.items()}


def bad_values(context: dict[str, object], candidates: list[dict[str, object]]) -> tuple[int, int, int]:
    """Return the number of unknown values, of missing values, and of names that no field reads."""
    encoder = Encoder(SCHEMA)
    tokens = encoder.tokens(context, candidates)
    return encoder.ids(tokens, LOOKUP)[1].total(), tokens.missing.total(), tokens.ignored.total()


@pytest.fixture
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    write_golden([GoldenRequest({"at": "2026-01-31"}, [GoldenCandidate("a", {})], [0.5])], folder / "golden.jsonl")
    calibration, files = Calibration(), dict[str, str]()
    manifest = Manifest(
        format_version=3,
        name="x",
        version="",
        created="",
        schema_fingerprint="",
        fields=11,
        parameters=0,
        metrics={},
        calibration=calibration,
        files=files,
    )
    return Bundle(folder, manifest, SCHEMA, LOOKUP, Calibrator(calibration, None, SCHEMA))


def test_load_tests_send_raw_values_whose_tokens_are_known(bundle: Bundle) -> None:
    requests = Requests(bundle, candidates=20, seed=1, golden=0.0)
    seen = set()
    for _ in range(100):
        body = requests.draw()
        rows = [candidate["features"] for candidate in body["candidates"]]
        assert bad_values(body["context"], rows) == (0, 0, 0)
        assert set(body["context"]) == {"user", "at", "count", "n_visits"}
        assert set(rows[0]) == {"ad", "made", "price"}
        seen.add(log_square(body["context"]["count"]))
    assert seen == set(TOKENS["count"])


def test_golden_requests_have_known_unknown_and_missing_values_of_every_field() -> None:
    encoder = Encoder(SCHEMA)
    known: dict[str, set[int]] = {}
    unknown, missing = dict.fromkeys(TOKENS, 0), dict.fromkeys((f.name for f in SCHEMA.fields), 0)
    for request in draw_golden(SCHEMA, LOOKUP):
        tokens = encoder.tokens(request.context, [candidate.features for candidate in request.candidates])
        model_input, found = encoder.ids(tokens, LOOKUP)
        assert tokens.ignored.total() == 0
        for name in found:
            unknown[name] += found[name]
        for name in tokens.missing:
            missing[name] += tokens.missing[name]
        for field, token_id in zip(SCHEMA.select("categorical", "context"), model_input.context_ids[0], strict=True):
            known.setdefault(field.name, set()).add(int(token_id))
    assert all(missing.values())
    assert all(unknown.values()), unknown
    assert {name: len(ids) >= 4 for name, ids in known.items()} == dict.fromkeys(known, True)


def test_the_example_has_only_known_values(bundle: Bundle) -> None:
    for golden in ([GoldenRequest({}, [GoldenCandidate("a", {})], [0.5])], draw_golden(SCHEMA, LOOKUP)):
        body = example_request(bundle, golden, 3)
        assert bad_values(body["context"], [candidate["features"] for candidate in body["candidates"]]) == (0, 0, 0)


def test_the_example_of_a_bundle_without_vocabulary_can_be_read(bundle: Bundle) -> None:
    bare = replace(bundle, vocabularies={})
    body = example_request(bare, [GoldenRequest({}, [GoldenCandidate("a", {})], [0.5])], 3)
    assert bad_values(body["context"], [candidate["features"] for candidate in body["candidates"]])[1:] == (0, 0)


@settings(max_examples=examples(15), deadline=None)
@given(
    st.lists(st.integers(0, 23).map(str), min_size=1, unique=True),
    st.lists(st.integers(1, 31).map(str), min_size=1, unique=True),
    st.sampled_from(["UTC", "America/St_Johns", "Pacific/Apia"]),
)
def test_every_hour_and_day_of_a_log_can_be_drawn(hours: list[str], days: list[str], zone: str) -> None:
    fields = [
        Field("hour", "context", source="at", transform="hour", timezone=zone),
        Field("day", "context", source="at", transform="day", timezone=zone),
    ]
    (source,) = sources(fields, {"hour": hours, "day": days})
    lookup = {"hour": build_vocabulary(hours), "day": build_vocabulary(days)}
    assert len(source.known) >= 20 * len(hours) * len(days) / 31
    assert {type(value) for value in source.known} == {int, str}
    assert all(source.is_known(value, lookup) for value in source.known[:50])
    assert len(hours) * len(days) == 24 * 31 or not source.is_known(source.unknown(7), lookup)


def test_a_name_that_is_read_as_a_token_and_as_a_number_gets_numbers() -> None:
    fields = [Field("price", "candidate"), Field("price_number", "candidate", "numeric", source="price")]
    (source,) = sources(fields, {"price": ["10", "2.5", "free", "nan", "inf"]})
    assert source.known == [10.0, 2.5]
    assert source.unknown(1) == -1e9 - 1


@pytest.mark.parametrize(
    "field",
    [
        Field("bid", "candidate", "numeric", mean=0.0, std=2.0, missing=("0", "2", "n/a")),
        Field("bid", "candidate", transform="log_square", missing=("1", "2")),
        Field("page", "context", missing=("unknown", "unseen-0")),
        Field("hour", "context", transform="hour", missing=("2026-01-01T12:00:00Z",)),
    ],
)
def test_an_example_is_not_a_value_that_means_missing(field: Field) -> None:
    (source,) = sources([field], {field.name: []})
    assert source.is_known(source.example(), {})


def test_numbers_of_a_logarithmic_field_have_its_mean_and_deviation() -> None:
    (source,) = sources([Field("price", "candidate", "numeric", mean=2.0, std=3.0, transform="log1p")], {})
    draws = np.random.default_rng(0).normal(size=10_000)
    logs = signed_log1p(np.array([source.number(draw) for draw in draws]))
    np.testing.assert_allclose(logs, 2.0 + 3.0 * draws, rtol=1e-9, atol=1e-9)
    assert np.isfinite(source.number(1e9))
