"""The loop on real processes: serve, collect, join, and compare with the simulation."""

import json
from pathlib import Path

import polars as pl
import pytest

from loadtest.loop.demo import MARKER, main
from tests.support.paths import ROOT

DEMO = str(ROOT / "deploy" / "demo")


def test_the_joined_log_equals_the_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["--bundle", DEMO, "--out", str(out), "--requests", "200", "--rate", "40"]) == 0
    assert "the joined log equals the simulation, row by row" in capsys.readouterr().out
    joined = pl.read_parquet(out / "joined" / "hours" / "*.parquet")
    assert len(joined) > 300
    balance = json.loads((out / "joined" / "join.json").read_bytes())["balance"]
    assert balance["impressions"]["joined"] == len(joined)
    assert balance["impressions"]["duplicate"] > 0
    assert balance["impressions"]["not sampled"] > 0


def test_only_the_folder_of_an_earlier_demo_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["--bundle", DEMO, "--out", str(tmp_path)]) == 2
    assert "Choose another folder" in capsys.readouterr().err
    (tmp_path / MARKER).touch()
    assert main(["--bundle", "/missing", "--out", str(tmp_path)]) == 2
    assert "/missing" in capsys.readouterr().err
    assert not (tmp_path / "thesis.txt").exists()
