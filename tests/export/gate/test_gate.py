"""ctr-gate: real bundles and runs on joined logs, from the command to the report."""

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.optimize import brentq  # type: ignore[import-untyped]

from contract.bundle import open_bundle, write_manifest
from contract.calibration import CALIBRATION, Calibration, FittedCalibration, encode_fitted, sigmoid
from contract.encode import Encoder
from contract.gate import read_gate_report
from export.cli.gate import main
from export.predict.rows import sent_values
from export.predict.scorer import open_scorer
from tests.support.joined_logs import START, draw_joined_log, write_joined_log
from tests.support.small_bundle import SHIFT, write_small_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [write_small_bundle(folder / f"b{seed}", seed=seed, name=f"b{seed}") for seed in range(2)]


@pytest.fixture(scope="module")
def joined(bundles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log whose true probabilities are those of the first bundle."""
    folder = tmp_path_factory.mktemp("logs") / "joined"
    draw_joined_log(folder, bundles[0], rows=20_000, units=2000)
    return folder


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def gate(new: Path, old: Path, joined: Path, out: Path, *words: str | Path) -> tuple[int, dict[str, Any]]:
    code = run(new, old, joined, "--out", out, *words)
    return code, json.loads((out / "gate.json").read_text())


def test_a_better_model_passes_and_a_worse_one_fails(
    bundles: list[Path], joined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = gate(bundles[0], bundles[1], joined, tmp_path / "better", "--by", "weekday")
    assert code == 0
    assert "verdict: pass" in capsys.readouterr().out
    assert report["figures"]["normalized_entropy"]["upper"] < -0.3
    assert report["figures"]["auc"]["low"] > 0.1
    read = read_gate_report(tmp_path / "better" / "gate.json")
    versions = [open_bundle(bundle).manifest.version for bundle in bundles]
    assert [read.verdict, read.reasons, read.new, read.old] == ["pass", (), *versions]

    code, report = gate(bundles[1], bundles[0], joined, tmp_path / "worse")
    assert code == 1
    assert "the normalized entropy changes by +" in report["reasons"][0]
    assert report["figures"]["auc"]["high"] < -0.1


def test_an_equal_model_whose_probabilities_are_too_high_fails(bundles: list[Path], tmp_path: Path) -> None:
    draw_joined_log(tmp_path / "joined", bundles[0], rows=20_000, units=2000, scale=1.3)
    code, report = gate(bundles[0], bundles[0], tmp_path / "joined", tmp_path / "gate")
    assert code == 1
    verdicts = {check["name"]: check["verdict"] for check in report["checks"] if check["name"][:7] != "segment"}
    assert verdicts == {"clicks": "pass", "normalized entropy": "pass", "predicted / observed": "fail"}
    assert report["figures"]["new"]["predicted_over_observed"]["value"] == pytest.approx(1.3, abs=0.03)
    assert "which is outside 1 ± 0.02. Calibrate the model again." in report["reasons"][0]


def test_a_calibration_that_corrects_the_probabilities_makes_the_model_pass(
    bundles: list[Path], tmp_path: Path
) -> None:
    """The new bundle has the weights of the old one, and a calibration.json."""
    log = draw_joined_log(tmp_path / "joined", bundles[0], rows=20_000, units=2000, scale=1.3)
    scorer = open_scorer(bundles[0])
    ctr = scorer.score(Encoder(scorer.schema), sent_values(log, scorer.schema))
    logit, target = np.log(ctr / (1 - ctr)), ctr.mean() / 1.3
    shift = float(brentq(lambda shift: sigmoid(logit + shift).mean() - target, -3, 0))
    calibrated = Path(shutil.copytree(bundles[0], tmp_path / "calibrated"))
    fitted = FittedCalibration(
        weights="", method="platt", knots=((-1.0, -1.0 + shift), (1.0, 1.0 + shift)), rows=1000, clicks=100
    )
    (calibrated / CALIBRATION).write_bytes(encode_fitted(fitted))
    write_manifest(calibrated, "calibrated", 1000, {}, Calibration(shift=SHIFT))
    code, report = gate(calibrated, bundles[0], tmp_path / "joined", tmp_path / "gate")
    assert code == 0
    assert report["figures"]["new"]["predicted_over_observed"]["value"] == pytest.approx(1, abs=0.02)
    assert report["figures"]["old"]["predicted_over_observed"]["low"] > 1.25
    assert report["figures"]["auc"]["value"] == pytest.approx(0, abs=1e-9)


def test_few_rows_decide_nothing(bundles: list[Path], tmp_path: Path) -> None:
    draw_joined_log(tmp_path / "joined", bundles[0], rows=300, units=40)
    code, report = gate(bundles[0], bundles[1], tmp_path / "joined", tmp_path / "gate")
    assert (code, report["verdict"]) == (3, "not enough clicks")
    assert "units have a click; at least 100 are needed." in report["reasons"][0]


def test_the_last_24_hours_are_compared_unless_bounds_are_given(
    bundles: list[Path], joined: Path, tmp_path: Path
) -> None:
    _, report = gate(bundles[0], bundles[1], joined, tmp_path / "gate")
    times = pl.read_parquet(joined / "hours" / "*.parquet")["time"]
    last = times.max()
    assert isinstance(last, type(START))
    assert report["since"] < report["until"]
    end = last.replace(microsecond=0) + timedelta(seconds=1)
    assert report["until"] == end.isoformat().replace("+00:00", "Z")
    assert report["figures"]["rows"] == (times >= end - timedelta(days=1)).sum()

    bounds = ("--since", "2026-11-29T20:30:00Z", "--until", "2026-11-30T10:00:00Z")
    _, report = gate(bundles[0], bundles[1], joined, tmp_path / "gate", *bounds)
    since, until = START + timedelta(hours=2.5), START + timedelta(hours=16)
    assert report["figures"]["rows"] == times.is_between(since, until, closed="left").sum()


def test_the_same_inputs_give_the_same_bytes(bundles: list[Path], joined: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        gate(bundles[0], bundles[1], joined, tmp_path / name, "--by", "item")
    for name in ("gate.json", "gate.md", "gate.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["gate.json", "gate.md", "gate.png"]


def test_nothing_is_written_after_an_error(
    bundles: list[Path], joined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundles[0], bundles[1], joined, "--out", tmp_path / "gate", "--since", "2030-01-01T00:00:00Z") == 2
    assert "has no rows from 2030-01-01T00:00:00Z to" in capsys.readouterr().err
    assert run(bundles[0], bundles[1], tmp_path, "--out", tmp_path / "gate") == 2
    assert "has no hours/*.parquet. Name the folder that ctr-join writes" in capsys.readouterr().err
    assert run(bundles[0], bundles[1], joined, "--out", tmp_path / "gate", "--by", "nothing") == 2
    assert 'no column "nothing"' in capsys.readouterr().err
    assert run(bundles[0], tmp_path, joined, "--out", tmp_path / "gate") == 2
    assert "is neither a bundle" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("click", 2, 'column "click" holds 2; expected 0 or 1'),
        ("weight", None, 'column "weight" holds None; expected a number above 0'),
        ("weight", 0.0, 'column "weight" holds 0.0; expected a number above 0'),
        ("age", "old", "field 'age' must be a number"),
    ],
)
def test_a_row_that_cannot_be_used_is_an_error_that_names_its_file_and_line(
    column: str,
    value: Any,
    words: str,
    bundles: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = draw_joined_log(tmp_path / "joined", bundles[0], rows=100, hours=1)
    row = pl.int_range(pl.len()) == 41
    changed = log.with_columns(pl.when(row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column))
    write_joined_log(tmp_path / "joined", changed)
    assert run(bundles[0], bundles[1], tmp_path / "joined", "--out", tmp_path / "gate") == 2
    error = capsys.readouterr().err
    assert words in error
    assert "2026-11-29T18.parquet, row 42" in error


def test_the_weight_of_a_row_counts_as_that_many_rows(bundles: list[Path], tmp_path: Path) -> None:
    log = draw_joined_log(tmp_path / "joined", bundles[0], rows=2000, units=300)
    write_joined_log(tmp_path / "doubled", pl.concat([log, log]).sort("time", maintain_order=True))
    write_joined_log(tmp_path / "weighted", log.with_columns(weight=pl.lit(2.0)))
    figures = []
    for name in ("doubled", "weighted"):
        figures.append(gate(bundles[0], bundles[1], tmp_path / name, tmp_path / "gate")[1]["figures"])
    assert figures[0]["rows"] == 2 * figures[1]["rows"]
    for name in ("auc", "auc_relative", "gauc", "normalized_entropy"):
        assert figures[0][name] == pytest.approx(figures[1][name])
    assert figures[0]["new"]["predicted_over_observed"] == pytest.approx(figures[1]["new"]["predicted_over_observed"])


def test_ads_that_the_new_model_does_not_know_are_a_segment(bundles: list[Path], joined: Path, tmp_path: Path) -> None:
    _, report = gate(bundles[0], bundles[1], joined, tmp_path / "gate")
    (cold,) = report["figures"]["segments"]["cold ads"]
    since = pl.lit(report["since"]).str.to_datetime(time_zone="UTC")
    log = pl.read_parquet(joined / "hours" / "*.parquet").filter(pl.col("time") >= since, item="new-item")
    assert (cold["rows"], cold["clicks"]) == (len(log), log["click"].sum())


def test_columns_that_ctr_join_renamed_are_read_by_their_new_names(
    bundles: list[Path], joined: Path, tmp_path: Path
) -> None:
    log = pl.read_parquet(joined / "hours" / "*.parquet")
    new_names = {"time": "moment", "click": "clicked", "unit": "household", "weight": "mass"}
    write_joined_log(tmp_path / "renamed", log.rename(new_names), **new_names)
    _, renamed = gate(bundles[0], bundles[1], tmp_path / "renamed", tmp_path / "gate")
    _, original = gate(bundles[0], bundles[1], joined, tmp_path / "gate")
    assert renamed["figures"] == original["figures"]


def test_rows_without_a_unit_are_drawn_by_request_and_rows_with_neither_one_by_one(
    bundles: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = draw_joined_log(tmp_path / "joined", bundles[0], rows=2000, units=300, hours=10)
    nothing = pl.lit(None, pl.String)
    write_joined_log(tmp_path / "requests", log.with_columns(unit=nothing))
    _, report = gate(bundles[0], bundles[1], tmp_path / "requests", tmp_path / "gate")
    assert (report["figures"]["drawn"], report["figures"]["clusters"]) == ("request", 1000)
    assert report["figures"]["gauc"] is None
    capsys.readouterr()
    write_joined_log(tmp_path / "rows", log.with_columns(unit=nothing, score_id=nothing))
    _, report = gate(bundles[0], bundles[1], tmp_path / "rows", tmp_path / "gate")
    assert (report["figures"]["drawn"], report["figures"]["clusters"]) == ("row", 2000)
    assert "the log has neither units nor requests, so intervals may be too narrow" in capsys.readouterr().err
    half = pl.when(pl.col("unit") < "unit-2").then(pl.col("unit"))
    write_joined_log(tmp_path / "half", log.with_columns(unit=half))
    _, report = gate(bundles[0], bundles[1], tmp_path / "half", tmp_path / "gate")
    kept = log.filter(pl.col("unit") < "unit-2")["unit"].n_unique()
    requests = log.filter(pl.col("unit") >= "unit-2")["score_id"].n_unique()
    assert (report["figures"]["drawn"], report["figures"]["clusters"]) == ("unit", kept + requests)
