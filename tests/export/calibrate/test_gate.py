"""ctr-gate finds a planted factor of 1.3, and ctr-calibrate corrects it."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from torch import Tensor

from contract.encode import Encoder
from contract.tokens import token
from export.cli.calibrate import main as calibrate
from export.cli.gate import main as gate
from export.predict.rows import sent_values
from export.predict.scorer import open_scorer
from model.data.readers.generated import CANDIDATE, CONTEXT, REQUEST
from tests.support.joined_logs import write_joined_log
from tests.support.runs import with_weights

FACTOR = 1.3
SHIFT = 5.0  # gives a click rate of about a half
END = datetime(2026, 12, 1, 12, tzinfo=UTC)


def scaled(run: Path, folder: Path, factor: float, shift: float) -> Path:
    """Copy a run whose logits are (the run's logits + shift) * factor."""

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {"head.0.bias": weights["head.0.bias"] + shift}
        return {
            name: factor * weight if name.startswith("head.") else weight for name, weight in (weights | moved).items()
        }

    return with_weights(run, folder, change)


def write_clicks(root: Path, folder: Path, run: Path, divisor: float) -> None:
    """Write a joined log of two days, whose true probabilities are those of a run, divided.

    Each impression occurs twice, with different clicks, so that the clicks decide.
    """
    splits = [pl.read_parquet(root / "generated" / f"{name}.parquet") for name in ("valid", "valid", "test", "test")]
    log = pl.concat(splits)
    days = np.repeat([1, 1, 0, 0], [len(split) for split in splits])
    features = {
        name: pl.Series([token(value) for value in log[name].to_list()], dtype=pl.String)
        for name in (*CONTEXT, *CANDIDATE)
    }
    frame = pl.DataFrame(features).with_columns(
        time=pl.Series([END - timedelta(days=day) for day in days.tolist()]).cast(pl.Datetime("ms", "UTC")),
        unit=features["user"],
        score_id=log[REQUEST].cast(pl.String),
        weight=pl.lit(1.0),
    )
    scorer = open_scorer(run)
    true = scorer.score(Encoder(scorer.schema), sent_values(frame, scorer.schema)) / divisor
    click = np.random.default_rng(1).random(len(frame)) < true
    write_joined_log(folder, frame.with_columns(click=pl.Series(click).cast(pl.Int8)))


def verdict(new: Path, old: Path, joined: Path, out: Path) -> dict[str, Any]:
    """Return the report of ctr-gate."""
    gate([str(new), str(old), str(joined), "--out", str(out)])
    report: dict[str, Any] = json.loads((out / "gate.json").read_text())
    return report


@pytest.mark.parametrize(("plant", "method"), [("logits", "platt"), ("probabilities", "isotonic")])
def test_the_gate_finds_a_planted_factor_and_a_calibration_corrects_it(
    plant: str, method: str, trained: Path, tmp_path: Path
) -> None:
    """The old model is the same without the factor. The standard error of predicted / observed is about 1%.

    Platt scaling can express a factor of the logits, and isotonic regression also one of the probabilities.
    """
    old = scaled(trained / "run", tmp_path / "old", 1.0, shift=SHIFT)
    new, joined = tmp_path / "new", tmp_path / "joined"
    if plant == "logits":
        scaled(trained / "run", new, FACTOR, shift=SHIFT)
        write_clicks(trained, joined, old, 1.0)
    else:
        shutil.copytree(old, new)
        write_clicks(trained, joined, old, FACTOR)
    before = verdict(new, old, joined, tmp_path / "gate")
    assert before["verdict"] == "fail"
    assert any("Calibrate the model again" in reason or "normalized entropy" in reason for reason in before["reasons"])

    assert calibrate([str(new), str(joined), "--method", method]) == 0
    after = verdict(new, old, joined, tmp_path / "gate")
    assert (after["verdict"], after["reasons"]) == ("pass", [])
    assert after["figures"]["new"]["predicted_over_observed"]["value"] == pytest.approx(1, abs=0.02)
