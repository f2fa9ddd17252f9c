"""Properties of the simulated traffic. The seeds are fixed, so the tests are deterministic."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from contract.bundle import open_bundle
from contract.encode import Encoder
from contract.events import StoredEvent
from contract.request_log import LogLine
from contract.score_ids import is_logged
from contract.segments import finished_files
from contract.units import BUCKETS, REQUEST_LOG_SALT, bucket
from model.data.synthetic.click_model import Floats, sigmoid
from model.data.synthetic.traffic import DAY_S, MIN_SKEW_S, Behavior, Requests, Traffic
from model.data.synthetic.traffic_events import Answers, SentEvent, Shown, show
from model.data.synthetic.traffic_files import simulated_answers, write_days
from model.data.synthetic.traffic_truth import Truth, balance, received
from tests.support.paths import ROOT

START_S = 1_796_083_200.0  # 2026-12-01
NUMBER = 20_000
WINDOW_S, LATENESS_S = 1800.0, 86_400.0


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    return Traffic(seed=1, start_s=START_S)


@pytest.fixture(scope="module")
def requests(traffic: Traffic) -> Requests:
    return traffic.requests(traffic.times(NUMBER, day=0))


@pytest.fixture(scope="module")
def shown(traffic: Traffic, requests: Requests) -> Shown:
    return show(traffic, requests, simulated_answers(1, requests, sample=1.0))[0]


@pytest.fixture(scope="module")
def truth(traffic: Traffic, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    folder = tmp_path_factory.mktemp("logs")
    return write_days(traffic, 2, 5000, folder / "log", folder / "events", sample=0.5)


def deviations(observed: int, expected: float, variance: float) -> float:
    """Return how many standard deviations a count is from its mean."""
    return abs(observed - expected) / float(np.sqrt(variance))


def test_a_few_users_send_many_of_the_requests_and_most_users_return(requests: Requests) -> None:
    counts = np.sort(np.bincount(requests.user))[::-1]
    assert counts[: len(counts) // 100].sum() > 0.12 * NUMBER  # with equal activity, it would be about 2%
    assert counts[0] > 20 * np.median(counts)
    assert (counts[counts > 0] > 1).mean() > 0.6


def test_the_effect_of_a_user_persists(traffic: Traffic) -> None:
    """Users who click more than expected without their effect on one day do so on other days."""

    def surplus(day: int) -> Floats:
        requests = traffic.requests(traffic.times(50_000, day), first=day * 50_000)
        shown = show(traffic, requests, simulated_answers(1, requests, 1.0))[0]
        base = sigmoid(requests.logit - traffic.user_effect[requests.user][:, None])
        expected = np.take_along_axis(base, shown.candidate, axis=1).sum(1)
        users = traffic.behavior.users
        per_user = np.bincount(requests.user, shown.clicked.sum(1) - expected, users)
        counts = np.bincount(requests.user, expected, users)
        return np.where(counts > 2, per_user / np.maximum(counts, 1e-9), np.nan)

    first, second = surplus(0), surplus(7)
    both = np.isfinite(first) & np.isfinite(second)
    assert both.sum() > 200
    assert np.corrcoef(first[both], second[both])[0, 1] > 0.2
    effect = traffic.user_effect[both]
    assert np.corrcoef(first[both], effect)[0, 1] > 0.4


def test_the_probability_of_the_same_ads_drifts_from_day_to_day(traffic: Traffic) -> None:
    drift = []
    for day in (0, 1, 27):
        requests = traffic.requests(traffic.times(2000, day), first=0)
        effect = requests.logit - requests.log_logit - traffic.user_effect[requests.user][:, None]
        by_category = [effect[requests.codes["category"] == category] for category in range(10)]
        assert max(float(np.ptp(values)) for values in by_category) < 1e-9  # the same for all ads of a category
        drift.append([values.mean() for values in by_category])
    std = traffic.behavior.drift_std
    assert np.abs(drift[0]).max() < 1e-9
    assert 0.5 * std < np.std(drift[1]) < 1.7 * std
    assert 0.5 * std < np.std(drift[2]) / np.sqrt(27) < 1.7 * std


@pytest.mark.parametrize("by", ["decile", "position", "category", "activity"])
def test_clicks_have_the_true_probability(requests: Requests, shown: Shown, by: str) -> None:
    """Within 4 standard deviations in each group."""
    probability, clicked = shown.probability, shown.clicked
    requests_of_user = np.bincount(requests.user)[requests.user]
    groups = {
        "decile": np.argsort(np.argsort(probability, axis=None)).reshape(probability.shape) * 10 // probability.size,
        "position": np.broadcast_to(np.arange(probability.shape[1]), probability.shape),
        "category": np.take_along_axis(requests.codes["category"], shown.candidate, axis=1),
        "activity": np.broadcast_to((requests_of_user // 20).clip(0, 3)[:, None], clicked.shape),
    }[by]
    for group in range(int(groups.max()) + 1):
        here = groups == group
        variance = (probability * (1 - probability))[here].sum()
        assert deviations(int(clicked[here].sum()), probability[here].sum(), variance) < 4, group


def test_a_lower_position_and_a_lift_change_the_probability() -> None:
    behavior = Behavior(position_effect=-1.0, lift={"better": 0.2})
    traffic = Traffic(1, START_S, behavior)
    requests = traffic.requests(traffic.times(3000, 0))
    answers = simulated_answers(1, requests, 1.0)
    base = show(traffic, requests, answers)[0].probability
    lifted = show(traffic, requests, replace(answers, version=["better"] * len(requests)))[0].probability
    assert lifted == pytest.approx(np.minimum(1, 1.2 * base))
    same = replace(answers, ctr=np.zeros_like(answers.ctr))  # so candidates 0, 1 and 2 are at positions 0, 1 and 2
    probability = show(traffic, requests, same)[0].probability
    logit = np.log(probability / (1 - probability))
    assert logit == pytest.approx(requests.logit[:, :3] - np.arange(3))


def test_click_delays_have_a_heavy_tail(shown: Shown) -> None:
    delays = np.sort(shown.click_delay_s, axis=None)
    median, p99 = np.quantile(delays, (0.5, 0.99))
    assert median == pytest.approx(20 * (2 ** (1 / 1.1) - 1), rel=0.05)
    assert p99 > 50 * median
    assert 0.002 < (delays > WINDOW_S).mean() < 0.02


def test_the_model_of_the_demo_predicts_the_clicks(requests: Requests, shown: Shown) -> None:
    """The traffic follows the log that the model was trained on: the demo bundle ranks it well."""
    from service.runtime.engine import open_engine

    bundle = open_bundle(ROOT / "deploy" / "demo")
    encoder, engine = Encoder(bundle.schema), open_engine(bundle, threads=1)
    ctr = []
    for context, features in zip(requests.contexts()[:2000], requests.features()[:2000], strict=True):
        tokens = encoder.tokens(context, features)
        ctr.append(engine.run([encoder.ids(tokens, bundle.vocabularies)[0]])[0])
    rows = np.arange(2000)[:, None]
    clicked, predicted = shown.clicked[:2000], np.array(ctr)[rows, shown.candidate[:2000]]
    assert roc_auc_score(clicked.ravel(), predicted.ravel()) > 0.7


def test_the_same_seed_and_answers_give_the_same_events(traffic: Traffic, requests: Requests) -> None:
    again = Traffic(1, START_S)
    same = again.requests(again.times(NUMBER, day=0))
    answers = simulated_answers(1, requests, 1.0)
    assert requests.at(5).bodies() == same.at(5).bodies() == [requests.bodies()[5]]
    assert show(traffic, requests, answers)[1] == show(again, same, answers)[1]
    other = Traffic(2, START_S)
    assert other.requests(other.times(NUMBER, day=0)).at(5).bodies() != same.at(5).bodies()


def test_the_order_of_the_answers_does_not_matter(traffic: Traffic, requests: Requests) -> None:
    answers = simulated_answers(1, requests, 1.0)

    def one(row: int) -> list[SentEvent]:
        here = slice(row, row + 1)
        answer = Answers(answers.score_id[here], answers.version[here], answers.time_s[here], answers.ctr[here])
        return show(traffic, requests.at(row), answer)[1]

    first = [one(row) for row in range(300)]
    assert first == [one(row) for row in reversed(range(300))][::-1]
    at_once = show(traffic, requests, answers)[1]
    ids = {sent.event.event_id for events in first for sent in events}
    assert sorted(sent for events in first for sent in events) == sorted(s for s in at_once if s.event.event_id in ids)


def test_every_kind_of_event_occurs(truth: Truth) -> None:
    events = truth.events(WINDOW_S, LATENESS_S)
    found = balance(events)
    expected = {"joined", "duplicate", "invalid", "late", "not sampled"}
    assert expected | {"without request"} == set(found["impressions"])
    assert expected | {"without impression", "outside window"} == set(found["clicks"])
    assert expected - {"duplicate", "late"} <= set(found["conversions"])
    assert sum(sum(counts.values()) for counts in found.values()) == len(events)
    copies = {(sent.event.event_id, round(sent.send_s * 1000)) for sent in truth.sent}
    assert len(events) == len(copies)
    joined = truth.joined(events)
    assert found["impressions"]["joined"] == len(joined)
    assert found["clicks"]["joined"] == joined["click"].sum()
    assert found["conversions"]["joined"] == joined["conversions"].sum()
    assert set(events["what"].unique()) == {"original", "resent", "repeated", "foreign", "invalid"}


def test_some_clocks_are_wrong(traffic: Traffic) -> None:
    error_s = np.abs(traffic.clock_error_s)
    wrong = error_s > 2
    assert 0.03 < wrong.mean() < 0.07
    assert error_s[wrong].min() > MIN_SKEW_S


def test_the_files_contain_the_sampled_requests_and_all_events(traffic: Traffic, tmp_path: Path) -> None:
    truth = write_days(traffic, 2, 500, tmp_path / "log", tmp_path / "events", sample=0.5)
    lines = [
        msgspec.json.decode(line, type=LogLine)
        for path in finished_files(tmp_path / "log")
        for line in path.read_bytes().splitlines()
    ]
    shown = truth.impressions()
    logged = shown.filter(pl.col("score_id").map_elements(is_logged, pl.Boolean))
    assert {line.score_id for line in lines} == set(logged["score_id"])
    assert 0.3 < len(lines) / 1000 < 0.7
    for line in lines:
        assert line.unit is not None
        assert bucket(REQUEST_LOG_SALT, line.unit) < BUCKETS // 2
        assert isinstance(line.candidates, list)
        assert line.candidate_count == len(line.candidates) == 5
        assert [candidate.ctr for candidate in line.candidates] == pytest.approx(
            [float(sigmoid(np.array(candidate.logit))) for candidate in line.candidates]
        )
    stored = [line for path in finished_files(tmp_path / "events") for line in path.read_bytes().splitlines()]
    assert len(stored) == len(truth.sent)
    times = [msgspec.json.decode(line, type=StoredEvent).received for line in stored]
    assert times == sorted(times)


def test_received_events_count_as_sent_again_after_the_first(truth: Truth) -> None:
    sent = truth.sent[:200]
    event = next(one for one in sent if one.what == "original").event
    values = {name: getattr(event, name) for name in event.__struct_fields__}
    lines = [
        msgspec.json.encode(StoredEvent(**values, received=f"2026-12-01T00:00:0{second}.500+00:00"))
        for second in (2, 1, 2)
    ]
    assert [(one.send_s % 60, one.what) for one in received(sent, lines)] == [(1.5, "original"), (2.5, "resent")]
    unknown = msgspec.json.encode(StoredEvent(**(values | {"event_id": "other"}), received="2026-12-01T00:00:00Z"))
    with pytest.raises(ValueError, match="other, which was not sent"):
        received(sent, [unknown])


def test_the_times_follow_the_day(traffic: Traffic) -> None:
    times_s = traffic.times(10_000, day=3)
    assert (np.diff(times_s) >= 0).all()
    assert times_s[0] >= START_S + 3 * DAY_S
    assert times_s[-1] < START_S + 4 * DAY_S
    hours = np.bincount((times_s % DAY_S // 3600).astype(int), minlength=24)
    assert hours[20] > 5 * hours[3]
