"""ctr-export measures the reference on the run's validation set, with the probabilities that the bundle serves."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.bundle import open_bundle
from contract.calibration import Calibration, Calibrator
from contract.reference import REFERENCE, bin_numbers
from export.bundle import export, missing_parts
from export.cli.export import log_of_run
from export.reference import bins_of, context_weights, count_requests, measure_reference, predict, row_weights
from model.data.prepare.prepared import Prepared, read_prepared
from model.experiments.run_folder import open_run
from tests.support.runs import DATA


@pytest.fixture(scope="module")
def prepared(run_folder: Path) -> Prepared:
    return read_prepared(run_folder.parent / DATA.prepared)


@pytest.fixture(scope="module", autouse=True)
def _few_requests_are_enough() -> Iterator[None]:
    """The small run's validation set has 750 rows, without requests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.reference.MIN_REQUESTS", 100)
        yield


@pytest.fixture(scope="module")
def bundle(run_folder: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "bundle"
    export(run_folder, folder, prepared)
    return folder


def test_the_reference_describes_the_validation_set(bundle: Path, prepared: Prepared) -> None:
    opened = open_bundle(bundle)
    assert opened.reference is not None
    ids, values, labels = prepared.split("valid")
    assert opened.reference.rows == len(ids) == 750
    weights = np.where(labels > 0, 1, 1 / DATA.negative_rate)
    calibrator = Calibrator(opened.manifest.calibration, None, opened.schema)
    ctr = predict(bundle, opened.schema, ids, values, calibrator)
    found = np.bincount(bin_numbers(opened.reference.predicted.edges, ctr), weights) / weights.sum()
    assert opened.reference.predicted.shares == pytest.approx(found)
    assert np.abs(found - 0.1).max() < 0.02
    bid = opened.reference.numeric["bid"]
    assert len(bid.bins.shares) == 10
    user = ids[:, [field.name for field in opened.schema.select("categorical")].index("user")]
    assert opened.reference.categorical["user"].unknown == pytest.approx(weights[user == 0].sum() / weights.sum())
    age = opened.reference.categorical["age_band"]
    assert 0.01 < age.missing < 0.2


def test_probabilities_are_those_after_calibration(bundle: Path, prepared: Prepared) -> None:
    schema = open_bundle(bundle).schema
    low, high = (
        measure_reference(bundle, prepared, Calibrator(Calibration(shift=shift), None, schema)) for shift in (-1.0, 1.0)
    )
    assert low is not None
    assert high is not None
    logits = [np.log(np.array(r.predicted.edges) / (1 - np.array(r.predicted.edges))) for r in (low, high)]
    assert logits[1] - logits[0] == pytest.approx(np.full(9, 2.0), abs=0.01)


def test_measuring_again_gives_the_same_reference(bundle: Path, prepared: Prepared) -> None:
    opened = open_bundle(bundle)
    calibrator = Calibrator(opened.manifest.calibration, None, opened.schema)
    assert measure_reference(bundle, prepared, calibrator) == opened.reference


def test_too_few_requests_give_no_reference_although_there_are_many_rows(
    bundle: Path, bundle_folder: Path, run_folder: Path, prepared: Prepared, tmp_path: Path
) -> None:
    shutil.copytree(prepared.folder, tmp_path / "prepared")
    np.save(tmp_path / "prepared" / "valid.requests.npy", np.repeat(np.arange(75, dtype=np.int32), 10))
    few = read_prepared(tmp_path / "prepared")
    assert (count_requests(prepared), count_requests(few)) == (750, 75)
    opened = open_bundle(bundle)
    assert measure_reference(bundle, few, Calibrator(Calibration(), None, opened.schema)) is None
    messages = missing_parts(open_bundle(bundle_folder).manifest, open_run(run_folder)[0], few)
    assert any(message.startswith(f"no {REFERENCE}, because valid has fewer than") for message in messages)


def test_a_request_counts_once_in_the_context_fields(bundle: Path, prepared: Prepared, tmp_path: Path) -> None:
    """The server counts the context of a request once, and a request with a missing age band may have more rows."""
    opened = open_bundle(bundle)
    ids, _, _ = prepared.split("valid")
    age = [field.name for field in opened.schema.select("categorical")].index("age_band")
    is_missing = ids[:, age] == 1
    requests = np.arange(len(ids), dtype=np.int32)
    requests[is_missing] = len(ids) + np.arange(is_missing.sum()) // 5
    shutil.copytree(prepared.folder, tmp_path / "prepared")
    np.save(tmp_path / "prepared" / "valid.requests.npy", requests)
    log = read_prepared(tmp_path / "prepared")
    weights = row_weights(log)
    totals = np.bincount(requests, context_weights(log, weights))
    assert totals[np.unique(requests)] == pytest.approx(1)
    reference = measure_reference(bundle, log, Calibrator(opened.manifest.calibration, None, opened.schema))
    assert reference is not None
    assert opened.reference is not None
    distinct = len(np.unique(requests))
    assert reference.categorical["age_band"].missing == pytest.approx(1 - (~is_missing).sum() / distinct)
    assert reference.categorical["ad"] == opened.reference.categorical["ad"]
    assert reference.predicted == opened.reference.predicted


def test_the_reason_for_a_missing_log_is_printed(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert log_of_run(run_folder, tmp_path) is None
    assert f"no cascade and no {REFERENCE}: {tmp_path}: not a prepared log" in capsys.readouterr().err


def test_missing_numbers_are_apart_from_the_bins(bundle: Path, prepared: Prepared) -> None:
    opened = open_bundle(bundle)
    calibrator = Calibrator(opened.manifest.calibration, None, opened.schema)
    _, values, labels = prepared.split("valid")
    column = [field.name for field in opened.schema.select("numeric")].index("bid")
    weights = np.where(labels > 0, 1, 1 / DATA.negative_rate)

    class WithMissing(Prepared):
        """The log, with every fourth bid missing. ctr-prepare writes 0 for a missing number."""

        def split(self, name: str):  # type: ignore[no-untyped-def]
            ids, _, labels = super().split(name)
            changed = values.copy()
            changed[::4, column] = 0
            return ids, changed, labels

    facts = msgspec.structs.replace(prepared.facts, missing={**prepared.facts.missing, "bid": 0.25})
    log = WithMissing(prepared.folder, prepared.schema, prepared.vocabulary_sizes, facts)
    reference = measure_reference(bundle, log, calibrator)
    assert reference is not None
    assert reference.numeric["bid"].missing == pytest.approx(weights[::4].sum() / weights.sum())
    assert sum(reference.numeric["bid"].bin_shares().values()) == pytest.approx(1)
    never = replace(log, facts=msgspec.structs.replace(facts, missing={}))
    unchanged = measure_reference(bundle, never, calibrator)
    assert unchanged is not None
    assert unchanged.numeric["bid"].missing == 0


def test_rows_with_weight_0_are_not_measured(bundle: Path, prepared: Prepared) -> None:
    """Here, only such rows have a bid, so the shares of its bins would be 0 / 0."""
    opened = open_bundle(bundle)
    _, values, _ = prepared.split("valid")
    column = [field.name for field in opened.schema.select("numeric")].index("bid")

    class Weighted(Prepared):
        """The log, with a bid and the weight 0 in every fourth row."""

        def split(self, name: str):  # type: ignore[no-untyped-def]
            ids, _, labels = super().split(name)
            changed = values.copy()
            changed[:, column] = np.where(np.arange(len(values)) % 4, 0, 1.5)
            return ids, changed, labels

        def weights(self, split: str):  # type: ignore[no-untyped-def]
            return (np.arange(len(values)) % 4 > 0).astype(np.float32)

    facts = msgspec.structs.replace(prepared.facts, missing={**prepared.facts.missing, "bid": 0.75})
    log = Weighted(prepared.folder, prepared.schema, prepared.vocabulary_sizes, facts)
    reference = measure_reference(bundle, log, Calibrator(opened.manifest.calibration, None, opened.schema))
    assert reference is not None
    assert reference.rows == 562
    assert reference.numeric["bid"].missing == 1


@given(st.lists(st.floats(-5, 5, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=200), st.integers(0, 99))
def test_bins_have_about_equal_weight_unless_numbers_are_equal(numbers: list[float], seed: int) -> None:
    array = np.array(numbers, np.float32)
    weights = np.random.default_rng(seed).uniform(0.5, 2, len(array))
    bins = bins_of(array, weights)
    assert sum(bins.shares) == pytest.approx(1)
    assert all(share > 0 for share in bins.shares)
    # A bin is larger than a decile only if a single number fills the rest of it.
    largest = max(weights[array == number].sum() for number in array) / weights.sum()
    assert max(bins.shares) <= 0.1 + largest + 1e-9
    # An edge is not a number of the log, so that rounding errors do not move a number to another bin.
    assert not set(bins.edges) & set(array.astype(np.float64).tolist())
