"""Metrics: counts, outcomes, and quantiles over the last minute."""

import asyncio
from itertools import pairwise

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from prometheus_client import generate_latest

from service.errors import BadRequest, DeadlineExceeded
from service.telemetry.metrics import BUCKETS_S, Metrics
from service.telemetry.rolling_latency import MAX_US, QUANTILES, RollingLatency


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_quantiles_are_within_one_percent() -> None:
    latency = RollingLatency(clock=lambda: 0.0)
    seconds = np.random.default_rng(0).lognormal(np.log(0.005), 0.8, 20_000)
    for value in seconds.tolist():
        latency.record(value)
    found = latency.quantiles_s()
    exact = np.quantile(seconds, QUANTILES, method="inverted_cdf")
    for quantile, expected in zip(QUANTILES, exact.tolist(), strict=True):
        assert found[quantile] == pytest.approx(expected, rel=0.01)


def test_quantiles_cover_the_last_minute() -> None:
    now = 0.0
    latency = RollingLatency(clock=lambda: now)
    for _ in range(1000):
        latency.record(1.0)
    now = 45.0
    latency.record(0.01)
    assert latency.quantiles_s()[0.5] == pytest.approx(1.0, rel=0.01)
    now = 65.0
    assert latency.quantiles_s()[0.999] == pytest.approx(0.01, rel=0.01)
    now = 500.0
    assert latency.quantiles_s() == {}


def test_quantiles_over_all_slices_equal_those_of_a_single_histogram() -> None:
    now = 0.0
    latency, whole = RollingLatency(clock=lambda: now), HdrHistogram(1, MAX_US, 3)
    for second, value in enumerate(np.random.default_rng(1).lognormal(np.log(0.02), 1.5, 50).tolist()):
        now = float(second)
        latency.record(value)
        whole.record_value(round(value * 1e6))
    expected = {quantile: whole.get_value_at_percentile(100 * quantile) / 1e6 for quantile in QUANTILES}
    assert latency.quantiles_s() == expected


async def test_text_equals_that_of_prometheus_client_and_yields_to_requests() -> None:
    metrics = Metrics(lambda: 0.0)
    with metrics.request() as timing:
        timing.record("run", 0.25)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    meanwhile = asyncio.create_task(count_turns())
    assert (await metrics.text()).decode() == text(metrics)
    meanwhile.cancel()
    assert turns >= 8


def test_extreme_durations_are_recorded() -> None:
    latency = RollingLatency(clock=lambda: 0.0)
    latency.record(0.0)
    latency.record(1e6)
    assert latency.quantiles_s()[0.999] == pytest.approx(60, rel=0.01)


def test_buckets_are_at_most_20_percent_wide_from_200_microseconds_to_one_second() -> None:
    assert BUCKETS_S[0] == 0.0002
    assert BUCKETS_S[-1] == 1.0
    assert all(1 < high / low <= 1.2 for low, high in pairwise(BUCKETS_S))


def test_request_is_counted_once_with_its_phases() -> None:
    metrics = Metrics(lambda: 0.0)
    with metrics.request() as timing:
        with timing.phase("parse"):
            pass
        timing.record("run", 0.25)
    metrics.set_model("small", "1")
    assert timing.header().startswith("parse;dur=0.0")
    assert timing.header().endswith("run;dur=250.000")
    counted = text(metrics)
    assert 'ctr_request_seconds_count{outcome="ok"} 1.0' in counted
    assert 'ctr_phase_seconds_sum{phase="run"} 0.25' in counted
    assert 'ctr_phase_seconds_count{phase="queue"} 0.0' in counted
    assert 'ctr_model_info{model="small",version="1"} 1.0' in counted
    assert 'ctr_request_latency_seconds{quantile="0.999"}' in counted


@pytest.mark.parametrize(
    ("error", "outcome", "in_quantiles"),
    [
        (BadRequest("no"), "bad_request", False),
        (DeadlineExceeded("late"), "deadline_exceeded", True),
        (asyncio.CancelledError(), "client_gone", False),
        (ArithmeticError(), "failed", False),
    ],
)
def test_exception_determines_the_outcome(error: BaseException, outcome: str, in_quantiles: bool) -> None:
    metrics = Metrics(lambda: 0.0)
    with pytest.raises(type(error)), metrics.request():
        raise error
    assert f'ctr_request_seconds_count{{outcome="{outcome}"}} 1.0' in text(metrics)
    assert ("ctr_request_latency_seconds{" in text(metrics)) == in_quantiles


def test_served_model_is_1_and_its_predecessor_is_0() -> None:
    metrics = Metrics()
    metrics.set_model("small", "1")
    metrics.set_model("small", "1", is_served=False)
    metrics.set_model("small", "2")
    assert 'ctr_model_info{model="small",version="1"} 0.0' in text(metrics)
    assert 'ctr_model_info{model="small",version="2"} 1.0' in text(metrics)


def test_each_application_has_its_own_metrics() -> None:
    one, other = Metrics(), Metrics()
    one.candidates.inc()
    assert "ctr_candidates_total 0.0" in text(other)
