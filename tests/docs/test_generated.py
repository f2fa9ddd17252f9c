"""Generated parts of pages are up to date, and every figure is in the report that the page links to."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.scripts.generate import files
from docs.scripts.reference import keys, without_meaning
from docs.scripts.reports import tables_in
from model.data_config import Data
from tests.support.documentation import FENCED, README
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
MEASURED = [README, DOCS / "benchmarks.md", *sorted((DOCS / "results").glob("*.md"))]
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]\d+)?")
REPORT = re.compile(r"\]\(([\w./-]+\.md)\)")
TARGETS = {"300,000"}  # targets that are not stated in the benchmark's report
COUNTED = re.compile(r"place (\d+) of (\d+)")


def test_generated_blocks_and_the_chart_are_up_to_date() -> None:
    for path, text in files().items():
        assert path.exists(), f"{path}: run python -m docs.scripts.generate"
        assert path.read_text() == text, f"{path} is out of date: run python -m docs.scripts.generate"


def test_the_type_of_a_key_with_several_tables_shows_their_keys() -> None:
    (split,) = [entry for entry in keys(Data) if entry.name == "split"]
    assert split.type == (
        '`"row"`, `"time"` or table with `by = "time"`, `valid`, `test`, `train` and `gap` or table with '
        '`by = "random"`, `valid`, `test`, `seed` and `unit`'
    )


def test_every_setting_and_key_has_a_description() -> None:
    assert without_meaning() == set()


@pytest.mark.parametrize("page", MEASURED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_figure_in_a_table_is_in_the_report_that_its_section_links_to(page: Path) -> None:
    checked = 0
    for section, row in measured_rows(page):
        links = REPORT.findall(row) or REPORT.findall(section)
        reports = [(page.parent / link).resolve() for link in links]
        known = {number for report in reports for number in NUMBER.findall(report.read_text())} | TARGETS
        for number in NUMBER.findall(COUNTED.sub("", REPORT.sub("", row))):
            checked += 1
            assert number in known, f"{number} in {row} is not in any of {links}"
    assert checked > 5, page


def measured_rows(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (section, line) for generated blocks, except table headers, in sections that link to a report."""
    for section in re.split(r"^## ", FENCED.sub("", page.read_text()), flags=re.MULTILINE):
        if "results/" in section or "ablations.md" in section:
            for block in re.findall(r"<!-- generated: [\w-]+ -->\n(.*?)<!-- end -->", section, re.DOTALL):
                lines = block.splitlines()
                yield from ((section, line) for line in lines[2 if lines[0].startswith("|") else 0 :])


@pytest.mark.parametrize(("label", "data"), [("Frappe", "frappe"), ("MovieLens tags", "movielens_tag")])
def test_the_stated_place_of_stec_is_its_rank_by_mean_auc(label: str, data: str) -> None:
    row = next(line for line in README.read_text().splitlines() if line.startswith(f"| {label} |"))
    report = (ROOT / "experiments" / data / "results" / "models.md").read_text()
    table = next(tables_in(report))
    auc = table.column("test AUC")
    aucs = {cells[0]: float(cells[auc].split()[0]) for cells in table.rows if cells[0] != "stec-request"}
    better = sum(auc > aucs["stec"] for auc in aucs.values())
    assert f"place {better + 1} of {len(aucs)}" in row


def test_the_readme_states_that_stec_was_tuned_more_and_which_targets_failed() -> None:
    text = " ".join(README.read_text().split())
    assert "The other models [had less tuning]" in text
    assert text.count("**fail**") >= 3


def test_the_readme_stays_one_page() -> None:
    assert len(README.read_bytes()) < 11_000
