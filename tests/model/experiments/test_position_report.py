"""ctr-train prints the position effects, and its report on several seeds contains them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model.cli.prepare import main as ctr_prepare
from model.cli.train import main as ctr_train

ROWS = 1500
TOML = """
name = "shop"
[data]
reader = "table"
folder = "."
prepared = "prepared"
train = "train.parquet"
valid = "valid.parquet"
test = "test.parquet"
label = "click"
position = "position"
train_negative_rate = 0.5
context = ["place"]
candidate = ["ad"]
[model]
type = "lr"
[training]
epochs = 2
batch_size = 100
"""


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A prepared log whose candidates at position 0 get more clicks."""
    for seed, split in enumerate(("train", "valid", "test")):
        random = np.random.default_rng(seed)
        position = random.integers(0, 2, ROWS)
        columns = {"place": random.choice(["top", "end"], ROWS), "ad": random.integers(0, 30, ROWS)}
        clicks = (random.random(ROWS) < np.where(position == 0, 0.4, 0.1)).astype(np.int8)
        pl.DataFrame(columns | {"position": position, "click": clicks}).write_parquet(tmp_path / f"{split}.parquet")
    toml = tmp_path / "experiments" / "shop.toml"
    toml.parent.mkdir()
    toml.write_text(TOML)
    assert ctr_prepare([str(toml), "--data", str(tmp_path)]) == 0
    return toml


def test_the_command_prints_the_effects_and_the_metrics_with_and_without_them(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctr_train([str(toml), "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    effects = json.loads((tmp_path / "run" / "metrics.json").read_text())["positions"]
    first, second = effects
    assert first["effect"] > 0 > second["effect"]
    shown = [f"{effect['effect']:+.3f} ({effect['rows']:,} rows, {effect['clicks']:,} clicks)" for effect in effects]
    assert f"position effects on the logit: 0: {shown[0]}, 1: {shown[1]}\n" in output
    assert " with the position effects\n" in output


def test_the_report_has_a_table_of_the_effects(toml: Path, tmp_path: Path) -> None:
    assert ctr_train([str(toml), "--data", str(tmp_path), "--seeds", "2"]) == 0
    report = json.loads((toml.parent / "results" / "shop.json").read_text())
    effects = [[effect["effect"] for effect in run["positions"]] for run in report["runs"]]
    page = (toml.parent / "results" / "shop.md").read_text()
    assert "| position | rows | clicks | effect on the logit in training |" in page
    for position, mean in enumerate(np.mean(effects, axis=0)):
        first = report["runs"][0]["positions"][position]
        assert f"| {position} | {first['rows']:,} | {first['clicks']:,} | {mean:+.3f} |" in page
