"""ctr-prepare and ctr-train state the period of each split of a log that is split by time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from model.baselines.lr import LRConfig
from model.data.prepare.prepare import prepare
from model.data.prepare.summary import split_lines
from model.data_config import Data, SplitByTime
from model.experiment_config import Experiment, Training
from model.experiments.run_folder import data_of
from model.experiments.train import train

START = datetime(2026, 12, 1, tzinfo=UTC)


def data(split: SplitByTime, **keys: Any) -> Data:
    columns: dict[str, Any] = {"label": "click", "context": ("place",), "candidate": ("ad",), "time": "time"}
    return Data(reader="table", folder=".", prepared="prepared", files="log.parquet", split=split, **columns | keys)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten days with a row every 10 minutes, not in the order of time."""
    random = np.random.default_rng(1)
    minutes = random.permutation(np.arange(0, 10 * 1440, 10))
    frame = pl.DataFrame(
        {
            "time": [START + timedelta(minutes=minute) for minute in minutes.tolist()],
            "place": random.choice(["a", "b"], len(minutes)),
            "ad": random.choice(["x", "y", "z"], len(minutes)),
            "click": (random.random(len(minutes)) < 0.3).astype(np.int8),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    return tmp_path


def test_the_period_of_each_split_is_recorded_and_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = data(SplitByTime(train="3d", valid="12h", test="1d"))
    prepared = prepare(root, section)
    periods = {name: facts.period for name, facts in prepared.facts.splits.items()}
    assert periods == {
        "train": ("2026-12-06T12:00:00Z", "2026-12-09T11:50:00Z"),
        "valid": ("2026-12-09T12:00:00Z", "2026-12-09T23:50:00Z"),
        "test": ("2026-12-10T00:00:00Z", "2026-12-10T23:50:00Z"),
    }
    assert {name: facts.rows for name, facts in prepared.facts.splits.items()} == {
        "train": 432,
        "valid": 72,
        "test": 144,
    }
    assert split_lines(prepared)[1].endswith("clicks, 2026-12-09T12:00:00Z to 2026-12-09T23:50:00Z")
    experiment = Experiment(name="shop", data=section, model=LRConfig(), training=Training(epochs=1))
    train(experiment, root, root / "run")
    assert "valid: 72 rows from 2026-12-09T12:00:00Z to 2026-12-09T23:50:00Z\n" in capsys.readouterr().out
    assert data_of(root / "run").periods == periods  # type: ignore[union-attr]


def test_a_log_without_a_split_by_time_has_no_periods(root: Path) -> None:
    files = {split: f"{split}.parquet" for split in ("train", "valid", "test")}
    for file in files.values():
        (root / file).write_bytes((root / "log.parquet").read_bytes())
    section = msgspec.structs.replace(data(SplitByTime(valid="1d", test="1d")), files=(), split="row", time="", **files)
    assert [facts.period for facts in prepare(root, section).facts.splits.values()] == [None] * 3
