"""ctr-train --seeds: every run is trained once, in any process, and a report is written."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from model.cli.train import main
from model.experiment_config import Experiment, read_experiment
from model.experiments.report import write_report
from model.experiments.run_check import METRICS
from model.experiments.run_registry import FinishedRun, run_list
from model.experiments.seeds import RunContext, run_missing, with_seed
from model.experiments.train import train_seeds
from model.experiments.trial import UNFINISHED, open_log
from model.training.progress import EpochTable
from tests.support.runs import TINY, make_root


@dataclass(frozen=True)
class Shared:
    """The seeds that this process (`ours`) and another one (`theirs`) trained."""

    root: Path
    ours: list[int]
    theirs: list[int]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_root(tmp_path_factory.mktemp("seeds"), requests=200)
    toml = root / "experiments" / "tiny.toml"
    toml.write_text(toml.read_text().replace("batch_size = 512", "batch_size = 64"))
    return root


@pytest.fixture(scope="module")
def shared(prepared: Path) -> Shared:
    """Train three seeds in two processes. The second process starts after this one has claimed its first seed."""
    toml, others = prepared / "experiments" / "tiny.toml", list[subprocess.Popen[str]]()
    command = [sys.executable, "-m", "model.cli.train", str(toml), "--data", str(prepared), "--seeds", "3"]

    def start_other(experiment: Experiment, rows: int) -> EpochTable:
        if not others:
            others.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert others[0].stdout is not None
            assert others[0].stdout.readline().startswith("training needs about ")
            assert others[0].stdout.readline().startswith("epoch 1")
        return EpochTable(experiment, rows)

    experiment, ours = read_experiment(toml), list[FinishedRun]()
    place = RunContext(open_log(experiment.data, prepared), run_list(toml), prepared)
    run_missing([with_seed(experiment, seed) for seed in (1, 2, 3)], place, start_other, ours.append)
    output, _ = others[0].communicate()
    assert others[0].returncode == 0
    assert "3 seeds: test AUC" in output
    theirs = [int(seed) for seed in re.findall(r"seed (\d): test AUC", output)]
    return Shared(prepared, [run.metrics.seed for run in ours], theirs)


@pytest.fixture
def trained(shared: Shared) -> Path:
    return shared.root


def test_two_processes_share_the_runs_and_train_each_once(shared: Shared) -> None:
    assert shared.ours[0] == 1
    assert shared.theirs
    assert sorted([*shared.ours, *shared.theirs]) == [1, 2, 3]
    trained = shared.root
    runs = run_list(trained / TINY).read()
    assert sorted(run.metrics.seed for run in runs) == [1, 2, 3]
    assert len({run.digest for run in runs}) == 1
    assert list((trained / UNFINISHED).iterdir()) == []


def test_a_line_records_everything_that_its_numbers_depend_on(trained: Path) -> None:
    line = json.loads((trained / "experiments" / "results" / "runs.jsonl").read_text().splitlines()[0])
    assert line["data"]["rows"]["train"] > line["data"]["rows"]["test"] > 0
    assert line["experiment"]["model"]["embedding"] == 8
    assert line["metrics"]["flops"] > 1000
    assert line["metrics"]["rows_per_s"] > 0
    assert 0 < line["metrics"]["test"]["calibration_error"] < 1
    assert line["metrics"]["wall_s"] > line["metrics"]["seconds"] > 0
    assert line["versions"]["torch"].startswith("2.")
    assert line["versions"]["cpu"]
    assert line["versions"]["cores"] >= 1


def test_the_report_is_written_to_the_results_folder_next_to_the_experiment(trained: Path) -> None:
    folder = trained / "experiments" / "results"
    report = json.loads((folder / "tiny.json").read_text())
    aucs = [run.metrics.test.auc for run in run_list(trained / TINY).read()]
    assert report["seeds"] == [1, 2, 3]
    assert report["data"] == msgspec.to_builtins(run_list(trained / TINY).read()[0].data)
    assert all(run["wall_s"] > run["s"] for run in report["runs"])
    assert report["test_auc_mean"] == pytest.approx(sum(aucs) / 3)
    assert report["test_auc_std"] > 0
    page = (folder / "tiny.md").read_text()
    for words in (
        "mean of 3 seeds",
        "FLOPs per row",
        "expected calibration error",
        "rows/s",
        "s with it",
        "Versions: python",
        "cores",
    ):
        assert words in page
    for picture in ("tiny-curve.png", "tiny-reliability.png"):
        assert f"]({picture})" in page
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_a_second_call_trains_only_the_missing_runs_and_saves_their_weights(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "copy")
    runs = run_list(tmp_path / "copy" / TINY)
    before = runs.read()
    train_seeds(tmp_path / "copy" / "experiments" / "tiny.toml", 4, tmp_path / "copy", tmp_path / "kept")
    said = capsys.readouterr()
    assert "seed 4: test AUC" in said.out
    assert "seed 1:" not in said.out
    assert "runs.jsonl already has seeds 1, 2, 3, whose weights were not saved" in said.err
    assert runs.read()[:3] == before
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["seed-4"]
    assert (tmp_path / "kept" / "seed-4" / METRICS).is_file()


def test_another_kind_of_folder_is_rejected_before_any_seed_is_trained(prepared: Path, tmp_path: Path) -> None:
    toml = tmp_path / "experiments" / "tiny.toml"
    toml.parent.mkdir()
    shutil.copy(prepared / "experiments" / "tiny.toml", toml)
    (tmp_path / "kept" / "seed-2").mkdir(parents=True)
    (tmp_path / "kept" / "seed-2" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"seed-2 exists and has no metrics\.json"):
        train_seeds(toml, 2, prepared, tmp_path / "kept")
    assert run_list(toml).read() == []


def test_a_report_of_a_single_seed_says_so(trained: Path, tmp_path: Path) -> None:
    runs = run_list(trained / TINY).read()[:1]
    page = write_report(tmp_path / "one", runs[0].experiment, runs)
    assert "one seed" in page


def test_out_is_required_without_seeds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["ctr-train", "tiny.toml"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--out is missing" in capsys.readouterr().err


def test_runs_in_the_folder_of_older_versions_are_an_error_and_not_trained_again(
    prepared: Path, tmp_path: Path
) -> None:
    toml = tmp_path / "experiments" / "tiny.toml"
    toml.parent.mkdir()
    shutil.copy(prepared / TINY, toml)
    (toml.parent / "runs.jsonl").write_text("")
    with pytest.raises(
        ValueError,
        match=r"runs\.jsonl: since .*, finished runs are stored in .*results.*\. Move the file there",
    ):
        train_seeds(toml, 1, prepared, None)
