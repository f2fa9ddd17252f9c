"""Hand-written pages next to the experiments' reports agree with the reports."""

import re

import pytest

from model.experiments.leaderboard import markdown, read_leaderboard
from model.experiments.significance import mean_and_std, read_report
from model.zoo import MODELS
from tests.support.paths import EXPERIMENTS, ROOT


@pytest.mark.parametrize(("data", "columns"), [("frappe", (1, 2, 3)), ("movielens_tag", (5, 6, 7))])
def test_the_page_of_ablations_matches_its_sweeps(data: str, columns: tuple[int, ...]) -> None:
    """Compare the AUC, logloss and parameters of each variant."""
    sweep = (EXPERIMENTS / data / "results" / "sweep-ablations.md").read_text()
    lines = (EXPERIMENTS / "ablations.md").read_text().splitlines()
    page = [line for line in lines if line.startswith("| STEC")]
    assert len(page) == 5
    for line in page:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        point = "base" if cells[0] == "STEC" else f"ablation {cells[0]}"
        (row,) = [row for row in sweep.splitlines() if row.startswith(f"| {point} | 5 |")]
        assert all(f" {cells[column]} |" in row for column in columns), (line, row)


@pytest.mark.parametrize("data", ["frappe", "movielens_tag"])
def test_a_table_of_all_models_matches_the_reports_next_to_it(data: str) -> None:
    folder = EXPERIMENTS / data
    made = [line for line in markdown(folder, read_leaderboard(folder), []).splitlines() if line.startswith("|")]
    there = [line for line in (folder / "results" / "models.md").read_text().splitlines() if line.startswith("|")]
    assert there == made, f"run ctr-compare --all experiments/{data} to update it"


def test_the_page_of_baselines_has_a_row_for_every_model_that_matches_its_report() -> None:
    page = (ROOT / "model" / "baselines" / "README.md").read_text()
    ours = dict(re.findall(r"^\| [^|]+ \| \[(\w+)\.py\].*\| ([^|]+) \|$", page, re.MULTILINE))
    assert {*ours, "stec"} == {*MODELS}
    for name, stated in ours.items():
        report = EXPERIMENTS / "frappe" / "results" / f"{name}.json"
        aucs = [auc * 100 for auc in read_report(report).seeds.aucs] if report.exists() else []
        assert stated == (f"{mean_and_std(aucs, 2)} ({len(aucs)})" if aucs else "not trained yet"), name
