"""ctr-join on the files of a simulated day, compared with what the simulation knows."""

from pathlib import Path

import pytest

from loadtest.loop.check import balance_differences, read_balance, read_joined, row_differences
from model.data.synthetic.traffic import DAY_S, Behavior, Traffic
from model.data.synthetic.traffic_files import write_days
from model.data.synthetic.traffic_truth import balance
from model.loop.join import join
from model.loop.output import Settings

START_S = 1_796_083_200.0  # 2026-12-01
BEHAVIOR = Behavior(late_share=0.02, late_s=1.5 * DAY_S)
SETTINGS = Settings(window_s=600, lateness_s=DAY_S)


@pytest.mark.parametrize("sample", [1.0, 0.5])
def test_every_row_and_every_number_is_as_simulated(tmp_path: Path, sample: float) -> None:
    truth = write_days(Traffic(3, START_S, BEHAVIOR), 1, 1000, tmp_path / "log", tmp_path / "events", sample)
    until_ms = round((START_S + 10 * DAY_S) * 1000)
    joined = tmp_path / "joined"
    join([tmp_path / "log", tmp_path / "events"], joined, SETTINGS, until_ms)
    events = truth.events(SETTINGS.window_s, SETTINGS.lateness_s)
    rows = truth.joined(events)
    assert rows["click"].sum() > 50
    assert row_differences(rows, read_joined(joined, rows.columns)) == []
    found = read_balance(joined)
    assert balance_differences(balance(events), found) == []
    assert {"late", "duplicate", "invalid", "without request", "joined"} <= set(found["impressions"])
    assert {"outside window", "without impression"} <= set(found["clicks"])
