"""Probabilities and inputs are counted by model version, and the counts of all processes are added up."""

import asyncio
import re
import resource
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from contract.bundle import BundleError, open_bundle, write_manifest
from contract.calibration import Calibration
from contract.encode import ModelInput
from contract.reference import REFERENCE, Bins, CategoricalReference, NumericReference, Reference
from contract.schema import FeatureSchema, Field
from service.models import manager
from service.telemetry import drift
from service.telemetry.drift import Drift, DriftCounter
from service.telemetry.drift_table import BOUNDS, MAX_VERSIONS, SUFFIX, Header, new_table, read_table
from service.telemetry.multiprocess import forget_process, merge_metrics
from service.vocabulary.publish import publish
from tests.support.app import StartApp, a_request, app_of
from tests.support.processes import eventually, get, post, served_version, serving
from tests.support.redis_server import RedisServer
from tests.support.small_bundle import FIELDS, SHIFT, with_users_rotated, write_small_bundle

QUARTERS = Bins((-1.0, 0.0, 1.0), (0.25, 0.25, 0.25, 0.25))
SMALL = Reference(
    rows=1000,
    predicted=Bins((0.2, 0.5), (0.4, 0.3, 0.3)),
    numeric={"age": NumericReference(QUARTERS, 0.1), "price": NumericReference(QUARTERS, 0.0)},
    categorical={name: CategoricalReference(0.1, 0.1) for name in ("user", "item", "weekday", "cost")},
)


def add_reference(bundle: Path, reference: Reference) -> Path:
    (bundle / REFERENCE).write_bytes(msgspec.json.encode(reference))
    write_manifest(bundle, "small", 1000, {"auc": 0.75}, Calibration(scale=1.0, shift=SHIFT))
    return bundle


@pytest.fixture
def with_reference(tmp_path: Path) -> Path:
    return add_reference(write_small_bundle(tmp_path / "with-reference"), SMALL)


@pytest.fixture
def _count_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "ONE_IN", 1)


def samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by its labels, except for the version. A bin comes after its field."""
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        tuple(sample.labels[label] for label in ("le", "field", "bin") if label in sample.labels): sample.value
        for sample in found
        if sample.name == name
    }


async def metrics_of(client: httpx.AsyncClient) -> str:
    return (await client.get("/metrics")).text


@pytest.mark.usefixtures("_count_all")
async def test_every_value_is_counted_in_its_bin(start: StartApp, with_reference: Path) -> None:
    random = np.random.default_rng(1)
    prices = random.normal(2.0, 0.7, 60).round(3).tolist()
    ctr: list[float] = []
    async with start(bundle=with_reference) as client:
        for number in range(20):
            features: list[dict[str, Any]] = [{"price": price} for price in prices[3 * number : 3 * number + 3]]
            features[0] |= {"item": "never seen", "cost": "free"}
            features[1] |= {"item": "4001"}
            context = {"user": "u1" if number % 2 else "someone", "age": 25.0 if number < 5 else None}
            body = {"context": context, "candidates": [{"id": i, "features": one} for i, one in enumerate(features)]}
            answer = await client.post("/v1/score", json=body)
            ctr += [score["ctr"] for score in answer.json()["scores"]]
        text = await metrics_of(client)
    assert samples(text, "ctr_predicted_requests_total") == {(): 20}
    values = samples(text, "ctr_field_values_total")
    bins = {name: [values[name, bin_] for bin_ in ("known", "unknown", "missing")] for name in ("user", "item", "cost")}
    assert bins == {"user": [10, 10, 0], "item": [20, 20, 20], "cost": [20, 0, 40]}
    assert [values["weekday", bin_] for bin_ in ("known", "unknown", "missing")] == [0, 0, 20]
    # (25 - 30) / 10 is in the second bin. Missing ages do not count as the mean, which would be in this bin as well.
    assert [values["age", bin_] for bin_ in ("0", "1", "2", "3", "missing")] == [0, 5, 0, 0, 15]
    expected = np.bincount(np.searchsorted([-1, 0, 1], (np.array(prices) - 2) / 0.5), minlength=4)
    assert [values["price", bin_] for bin_ in "0123"] == expected.tolist()
    predicted = samples(text, "ctr_predicted_bins_total")
    assert [predicted[(bin_,)] for bin_ in "012"] == np.bincount(np.searchsorted([0.2, 0.5], ctr), minlength=3).tolist()
    buckets = {float(le): count for (le,), count in samples(text, "ctr_predicted_bucket").items()}
    assert buckets == {le: sum(one <= le for one in ctr) for le in (*BOUNDS, float("inf"))}
    assert samples(text, "ctr_predicted_sum")[()] == pytest.approx(sum(ctr))
    assert samples(text, "ctr_reference_predicted_share") == {("0",): 0.4, ("1",): 0.3, ("2",): 0.3}
    assert samples(text, "ctr_reference_field_share")["age", "missing"] == 0.1
    assert samples(text, "ctr_reference_field_share")["age", "0"] == pytest.approx(0.225)


@pytest.mark.usefixtures("_count_all")
async def test_a_bundle_without_a_reference_has_only_the_histogram(client: httpx.AsyncClient) -> None:
    await client.post("/v1/score", json=a_request())
    text = await metrics_of(client)
    assert samples(text, "ctr_predicted_count") == {(): 2}
    assert not samples(text, "ctr_field_values_total")
    assert not samples(text, "ctr_reference_field_share")


@pytest.mark.usefixtures("_count_all")
async def test_failed_requests_and_skipped_candidates_do_not_count(start: StartApp, with_reference: Path) -> None:
    bad = {"id": 3, "features": {"price": "n/a"}}
    async with start(bundle=with_reference) as client:
        assert (await client.post("/v1/score", json=a_request(candidates=[bad]))).status_code == 422
        skipped = a_request(candidates=[bad, *a_request()["candidates"]], on_bad_candidate="skip")
        assert (await client.post("/v1/score", json=skipped)).status_code == 200
        none_left = a_request(candidates=[bad], on_bad_candidate="skip")
        assert (await client.post("/v1/score", json=none_left)).status_code == 200
        text = await metrics_of(client)
    assert samples(text, "ctr_predicted_requests_total") == {(): 1}
    assert sum(value for (name, _), value in samples(text, "ctr_field_values_total").items() if name == "price") == 2


async def test_about_one_request_in_16_counts(start: StartApp, with_reference: Path) -> None:
    async with start(bundle=with_reference) as client:
        for _ in range(400):
            await client.post("/v1/score", json=a_request())
        text = await metrics_of(client)
    # The mean is 25, and the standard deviation 4.8.
    assert 3 <= samples(text, "ctr_predicted_requests_total")[()] <= 55


@pytest.mark.usefixtures("_count_all")
async def test_counts_appear_within_a_second_without_further_requests(
    with_reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "FLUSH_S", 0.01)
    bundle = open_bundle(with_reference)
    counter = DriftCounter(bundle.schema, new_table(Header("1", bundle.reference)))
    ids, values = np.zeros((3, 2), np.int64), np.zeros((3, 1), np.float32)
    request = ModelInput(ids[:1], ids, values[:1], values)
    for _ in range(2):
        counter.add(request, np.array([0.1, 0.3, 0.7]), {}, {})
        assert not counter.table.requests[0]
        await asyncio.sleep(0.1)
        counter.table.requests[0] -= 1
        assert counter.table.requests[0] == 0
    assert counter.table.predicted.sum() == 6


def test_an_invalid_reference_is_refused(with_reference: Path) -> None:
    add_reference(with_reference, msgspec.structs.replace(SMALL, numeric={}))
    with pytest.raises(BundleError, match=rf"{with_reference.name}: {REFERENCE}: the numeric field 'age'"):
        open_bundle(with_reference)


def test_the_table_of_an_exited_process_is_added_to_those_before_it(tmp_path: Path) -> None:
    for process, requests in (("11", 5), ("12", 7), ("13", 1)):
        table = new_table(Header("v", SMALL), tmp_path / f"{process}_v{SUFFIX}")
        table.requests[0] = requests
        table.tokens[1, 2] = requests
        table.numbers["price"][4] = requests
        table.predicted[0] = requests
        table.total[0] = requests / 2
    for pid in (11, 12):
        before = samples(merge_metrics(tmp_path).decode(), "ctr_field_values_total")
        forget_process(tmp_path, pid)
        assert samples(merge_metrics(tmp_path).decode(), "ctr_field_values_total") == before
    assert sorted(path.name for path in tmp_path.glob(f"*{SUFFIX}")) == [f"13_v{SUFFIX}", f"ended_v{SUFFIX}"]
    text = merge_metrics(tmp_path).decode()
    assert samples(text, "ctr_predicted_requests_total") == {(): 13}
    assert samples(text, "ctr_predicted_sum") == {(): 6.5}
    assert samples(text, "ctr_field_values_total")["price", "missing"] == 13


def test_counts_of_exited_processes_survive_a_lack_of_space(tmp_path: Path) -> None:
    for pid in (11, 12):
        new_table(Header("v", SMALL), tmp_path / f"{pid}_v{SUFFIX}").requests[0] = pid
    forget_process(tmp_path, 11)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / f"12_v{SUFFIX}").stat().st_size - 1, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            forget_process(tmp_path, 12)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert samples(merge_metrics(tmp_path).decode(), "ctr_predicted_requests_total") == {(): 23}


def test_only_the_last_versions_are_kept(tmp_path: Path) -> None:
    drifts = [Drift(tmp_path, "1"), Drift(tmp_path, "2")]
    for version in range(10):
        for one in drifts:
            one.open(str(version), FIELDS, SMALL).table.requests[0] += 1
    assert len(list(tmp_path.iterdir())) == 2 * MAX_VERSIONS
    for pid in (1, 2):
        forget_process(tmp_path, pid)
    drifts[0].open("10", FIELDS, SMALL)
    forget_process(tmp_path, 1)
    names = sorted(path.name for path in tmp_path.glob(f"*{SUFFIX}"))
    assert names == [f"ended_{version}{SUFFIX}" for version in (10, 7, 8, 9)]
    assert read_table(tmp_path / f"ended_9{SUFFIX}").requests[0] == 2


def test_a_version_that_is_served_again_goes_on_counting(tmp_path: Path) -> None:
    drifts = Drift(tmp_path, "1")
    first = drifts.open("a", FIELDS, SMALL)
    drifts.open("b", FIELDS, SMALL)
    assert drifts.open("a", FIELDS, SMALL) is first
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == 2


async def test_both_models_of_a_reload_are_kept_apart(
    start: StartApp, with_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "ONE_IN", 1)
    other = write_small_bundle(tmp_path / "other", seed=1)
    async with start(bundle=with_reference) as client:
        await client.post("/v1/score", json=a_request())
        assert await app_of(client).state.serving.load(other) is None
        for _ in range(2):
            await client.post("/v1/score", json=a_request())
        text = await metrics_of(client)
    first, second = (open_bundle(folder).manifest.version for folder in (with_reference, other))
    assert f'ctr_predicted_requests_total{{version="{first}"}} 1.0' in text
    assert f'ctr_predicted_requests_total{{version="{second}"}} 2.0' in text


async def test_versions_that_cannot_be_served_do_not_displace_the_one_that_is(
    start: StartApp,
    with_reference: Path,
    tmp_path: Path,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their vocabularies are not in Redis."""
    monkeypatch.setattr(manager, "VOCABULARY_TIMEOUT_S", 0.1)
    bundle = open_bundle(with_reference)
    with redis_server.client() as redis:
        publish(redis, bundle)
    async with start(bundle=with_reference, vocabulary="redis", redis_url=redis_server.url) as client:
        serving_model = app_of(client).state.serving
        for number in range(1, 1 + MAX_VERSIONS):
            other = with_users_rotated(write_small_bundle(tmp_path / str(number), seed=number), number)
            assert await serving_model.load(other) is not None
        text = await metrics_of(client)
    versions = re.findall(r'ctr_predicted_requests_total{version="(.*)"}', text)
    assert versions == [bundle.manifest.version]


def test_a_server_adds_up_its_workers(with_reference: Path) -> None:
    with serving(with_reference, CTR_WORKERS="2") as server:
        version = served_version(server.url)
        for _ in range(300):
            assert post(f"{server.url}/v1/score", json=a_request(timeout_ms=5000)).status_code == 200

        def counted() -> float:
            return samples(get(f"{server.url}/metrics").text, "ctr_predicted_requests_total")[()]

        eventually(lambda: counted() >= 3, "requests are counted")
        text = get(f"{server.url}/metrics").text
        assert f'ctr_reference_predicted_share{{bin="0",version="{version}"}} 0.4' in text
        assert samples(text, "ctr_field_values_total")["price", "missing"] == 0


NUMBERS = FeatureSchema((Field("user", "context"), Field("ad", "candidate"), Field("bid", "candidate", "numeric")))
BID = Reference(
    rows=10,
    predicted=Bins((), (1.0,)),
    numeric={"bid": NumericReference(QUARTERS, 0.0)},
    categorical={"user": CategoricalReference(0, 0), "ad": CategoricalReference(0, 0)},
)


@given(st.lists(st.lists(st.none() | st.floats(-3, 3, width=32), min_size=1, max_size=5), max_size=30), st.booleans())
def test_every_number_is_in_one_bin(requests: list[list[float | None]], has_vector: bool) -> None:
    bid = Field("bid", "candidate", "numeric", missing_vector=True) if has_vector else NUMBERS.fields[2]
    counter = DriftCounter(FeatureSchema((*NUMBERS.fields[:2], bid)), new_table(Header("1", BID)))
    context = np.empty((1, 0), np.float32)
    for bids in requests:
        missing = sum(one is None for one in bids)
        absent = np.nan if has_vector else 0.0
        values = np.array([[absent if one is None else one] for one in bids], np.float32)
        counter.count([drift.Pending(context, values, None, {"bid": missing} if missing else {}, {})])
    present = [one for bids in requests for one in bids if one is not None]
    expected = np.bincount(np.searchsorted([-1.0, 0.0, 1.0], present), minlength=4) if present else [0] * 4
    assert counter.table.numbers["bid"].tolist() == [*expected, sum(map(len, requests)) - len(present)]
