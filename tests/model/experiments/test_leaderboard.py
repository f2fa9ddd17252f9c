"""ctr-compare --all: the leaderboard of a folder of reports."""

import dataclasses
import json
import shutil
from pathlib import Path

import msgspec
import pytest

from model.cli.compare import main
from model.experiments.leaderboard import SPEED, read_leaderboard, write_leaderboard
from model.experiments.report import write_report
from model.experiments.run_folder import OtherWeights
from model.experiments.run_registry import FinishedRun
from tests.support.runs import experiment
from tests.support.runs import run as a_run

AUCS = {"stec": (0.80, 0.81), "dcn": (0.79, 0.795), "lr": (0.70,)}


def run(seed: int, auc: float) -> FinishedRun:
    """Return a finished run that has this AUC and everything that a report needs."""
    made = a_run(seed)
    test = dataclasses.replace(made.metrics.test, auc=auc, logloss=1 - auc)
    metrics = msgspec.structs.replace(made.metrics, test=test, flops=10 * seed, rows_per_s=1000.0)
    return msgspec.structs.replace(made, metrics=metrics)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three reports: two seeds each for STEC and DCN, and one for LR. Tests share them: do not change them."""
    folder = tmp_path_factory.mktemp("leaderboard") / "results"
    for name, aucs in AUCS.items():
        write_report(folder / name, experiment(1), [run(seed, auc) for seed, auc in enumerate(aucs, 1)])
    return folder


@pytest.fixture
def folder(reports: Path, tmp_path: Path) -> Path:
    """A copy of the three reports, which a test may change."""
    return Path(shutil.copytree(reports, tmp_path / "results"))


def cells(page: str, name: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_models_are_sorted_by_auc_and_the_page_gives_the_rank_of_stec(folder: Path) -> None:
    page = write_leaderboard(folder.parent).read_text()
    assert [s.name for s in read_leaderboard(folder.parent)] == ["stec", "dcn", "lr"]
    assert "STEC is number 1 of 3 models by mean test AUC" in page


def test_a_model_that_is_better_than_stec_is_listed_above_it(folder: Path) -> None:
    write_report(folder / "fm", experiment(1), [run(1, 0.9)])
    page = write_leaderboard(folder.parent).read_text()
    assert "STEC is number 2 of 4 models" in page
    assert cells(page, "fm")[4] == "-10.56%"


def test_a_row_has_the_improvement_as_defined_in_the_paper_and_a_p_value(folder: Path) -> None:
    page = write_leaderboard(folder.parent).read_text()
    assert cells(page, "stec")[1:5] == ["raw", "2", "80.50 ± 0.71", "base"]
    assert cells(page, "dcn")[1:5] == ["raw", "2", "79.25 ± 0.35", "+1.58%"]
    assert 0 < float(cells(page, "dcn")[6]) < 1
    assert cells(page, "lr")[6] == ""  # A single seed has no variance.


def averaged(made: FinishedRun, valid_logloss: float) -> FinishedRun:
    """Return a run whose averaged weights have this logloss on valid and an AUC of 0.9 on test."""
    valid = dataclasses.replace(made.metrics.valid, logloss=valid_logloss)
    test = dataclasses.replace(made.metrics.test, auc=0.9)
    other = OtherWeights("averaged", best_epoch=1, best_part=1.0, valid=valid, test=test)
    return msgspec.structs.replace(made, metrics=msgspec.structs.replace(made.metrics, other=other))


@pytest.mark.parametrize(("valid_logloss", "weights", "auc"), [(0.2, "averaged", "90.00"), (0.4, "raw", "50.00")])
def test_a_row_has_the_weights_that_are_better_on_valid(
    folder: Path, valid_logloss: float, weights: str, auc: str
) -> None:
    write_report(folder / "fm", experiment(1), [averaged(run(1, 0.5), valid_logloss)])
    page = write_leaderboard(folder.parent).read_text()
    assert cells(page, "fm")[1:4] == [weights, "1", auc]


def test_speed_is_listed_and_plotted_if_it_was_measured(folder: Path) -> None:
    assert cells(write_leaderboard(folder.parent).read_text(), "dcn")[-1] == ""
    assert not (folder / "models-serving.png").exists()
    measured = {"stec": {"us": 1.25, "rows_per_s": 9000.4}, "dcn": {"us": 3.5, "rows_per_s": 12345.6}}
    (folder / SPEED).write_text(json.dumps(measured))
    assert cells(write_leaderboard(folder.parent).read_text(), "dcn")[-2:] == ["12,346", "3.50"]
    for picture in ("models-flops.png", "models-serving.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("dcn.json", "{}", "dcn.json is not a report"),
        ("dcn.json", "[" * 100_000, "dcn.json is not a report"),
        ("speed.json", '{"stec": "fast"}', "speed.json: Expected `object`"),
        ("speed.json", '{"stec": {"us": -1, "rows_per_s": 1}}', "speed.json: Expected `float` > 0"),
        ("speed.json", '{"stec": {"us": 1}}', "missing required field `rows_per_s`"),
        ("speed.json", "[1]", "python -m benchmarks.models"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(folder: Path, name: str, text: str, words: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        write_leaderboard(folder.parent)
    assert not (folder / "models.md").exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"runs": []}, "length >= 1"),
        ({"runs": [{"seed": 1, "test": {"auc": 98.5, "logloss": 0.1}}]}, r"<= 1.0 - at `\$.runs\[0\].test.auc`"),
        ({"runs": [{"seed": 1, "test": {"auc": None, "logloss": 0.1}}]}, r"got `null` - at `\$.runs\[0\].test.auc`"),
        ({"runs": [{"seed": 1, "test": {"auc": 0.9, "logloss": 0.1}}] * 3}, "a seed occurs twice"),
        ({"parameters": 1.5}, r"at `\$.parameters`"),
        ({"data": "abc"}, r"at `\$.data`"),
    ],
)
def test_a_report_with_invalid_numbers_is_an_error(folder: Path, lines: dict[str, object], words: str) -> None:
    report = json.loads((folder / "dcn.json").read_bytes())
    (folder / "dcn.json").write_text(json.dumps(report | lines))
    with pytest.raises(ValueError, match=f"dcn.json is not a report.*{words}"):
        write_leaderboard(folder.parent)


def test_without_flops_in_the_reports_no_plot_of_flops_is_written(folder: Path) -> None:
    for path in folder.glob("*.json"):
        report = json.loads(path.read_bytes())
        path.write_text(json.dumps({key: value for key, value in report.items() if key != "flops"}))
    assert "models-flops" not in write_leaderboard(folder.parent).read_text()
    assert not (folder / "models-flops.png").exists()


def test_hidden_files_are_ignored(folder: Path) -> None:
    (folder / ".dcn.json").write_bytes((folder / "dcn.json").read_bytes())
    assert [s.name for s in read_leaderboard(folder.parent)] == ["stec", "dcn", "lr"]


def test_a_leaderboard_needs_the_report_of_stec(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "stec.json").unlink()
    monkeypatch.setattr("sys.argv", ["ctr-compare", "--all", str(folder.parent)])
    assert main() == 2
    assert "has no stec.json to compare with" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["a.json"], ["a.json", "b.json", "--all", "experiments"], []])
def test_the_command_accepts_either_two_names_or_a_folder(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ctr-compare", *words])
    with pytest.raises(SystemExit):
        main()


def test_a_report_of_another_log_is_rejected_even_with_one_seed(folder: Path) -> None:
    report = json.loads((folder / "lr.json").read_bytes())
    report["data"]["fingerprint"] = "beef"
    (folder / "lr.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"lr\.json: .*differently prepared data"):
        write_leaderboard(folder.parent)


def test_a_number_that_is_missing_in_an_older_report_is_blank(folder: Path) -> None:
    report = json.loads((folder / "lr.json").read_bytes())
    del report["flops"], report["runs"][0]["rows_per_s"]
    (folder / "lr.json").write_text(json.dumps(report))
    assert cells(write_leaderboard(folder.parent).read_text(), "lr")[-3:] == ["", "", ""]
