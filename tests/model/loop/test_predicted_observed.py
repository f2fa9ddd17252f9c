"""Predicted and observed clicks of the newest hours, in join.json, in what ctr-join prints, and for Prometheus."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from contract.request_log import LoggedCandidate
from model.cli.join import main
from model.loop.match import HOUR_MS
from model.loop.predicted_observed import HOURS, Clicks, PredictedObserved, write_metrics
from tests.support.loop_logs import event, iso, request, score_id, write_logs

HOUR = 3600


def parsed(path: Path) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(path.read_text())
    return {(s.name, s.labels.get("version", "")): s.value for family in families for s in family.samples}


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    counts = np.random.default_rng(0).poisson(40, 4000)
    covered = [low <= 1 <= high for low, high in (Clicks(1000, int(n), 40.0).interval() for n in counts)]
    assert np.mean(covered) >= 0.985


def test_only_the_newest_hours_count_and_versions_are_apart() -> None:
    counts = PredictedObserved()
    for hour in range(HOURS + 3):
        counts.add(hour * HOUR_MS, "a" if hour < 5 else "b", 0.25, hour % 2)
    counts.add(HOUR_MS * 5, "a", None, 1)
    newest = counts.newest()
    assert newest["a"] == Clicks(2, 1, 0.5)
    assert newest["b"].impressions == HOURS - 2


def test_without_clicks_the_ratio_is_infinite_in_metrics_and_null_in_json(tmp_path: Path) -> None:
    counts = PredictedObserved()
    counts.add(0, "a", 0.5, 0)
    assert counts.as_json()["a"]["ratio"] is None
    assert counts.as_json()["a"]["interval"][0] > 0
    write_metrics(tmp_path / "ctr.prom", counts.newest(), 7.0)
    found = parsed(tmp_path / "ctr.prom")
    assert found["ctr_joined_predicted_observed_ratio", "a"] == math.inf
    assert found["ctr_joined_timestamp_seconds", ""] == 7.0


def test_ctr_join_reports_what_was_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests, events = [], []
    for number in range(60):
        candidates = [LoggedCandidate(0, "x", {"ad": "a"}, ctr=0.1), LoggedCandidate(1, "y", {"ad": "b"}, ctr=0.9)]
        requests.append(request(number, number * 100.0, candidates))
        of = score_id(number, number * 100.0)
        events.append(event("impression", of, number * 100.0 + 1, candidate=0))
        if number % 5 == 0:
            events.append(event("click", of, number * 100.0 + 2, candidate=0))
    folders = write_logs(tmp_path, requests, events)
    metrics = tmp_path / "metrics" / "ctr.prom"
    metrics.parent.mkdir()
    arguments = [*map(str, folders), "--out", str(tmp_path / "joined"), "--until", iso(100 * HOUR)]
    assert main([*arguments, "--metrics", str(metrics)]) == 0
    (found,) = json.loads((tmp_path / "joined" / "join.json").read_text())["predicted_observed"].values()
    # The candidates with 0.9 were not shown.
    assert (found["impressions"], found["clicks"], found["predicted"], found["ratio"]) == (60, 12, 6.0, 0.5)
    low, high = found["interval"]
    assert low < 0.5 < high
    assert "predicted / observed clicks: 0.500 (99% interval" in capsys.readouterr().out
    values = parsed(metrics)
    assert values["ctr_joined_impressions", "v1"] == 60
    assert values["ctr_joined_clicks", "v1"] == 12
    assert values["ctr_joined_predicted_clicks", "v1"] == pytest.approx(6.0)
    assert values["ctr_joined_predicted_observed_lower", "v1"] == pytest.approx(low, abs=1e-5)
    assert values["ctr_joined_predicted_observed_upper", "v1"] == pytest.approx(high, abs=1e-5)
    assert [path.name for path in metrics.parent.iterdir()] == ["ctr.prom"]
    assert metrics.stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("name", ["ctr.txt", "missing/ctr.prom"])
def test_a_file_that_the_collector_would_not_read_is_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(tmp_path / "out"), "--metrics", str(tmp_path / name)])
    assert "expected a file in an existing folder, with a name ending in .prom" in capsys.readouterr().err
