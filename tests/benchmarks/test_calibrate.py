"""The benchmark of ctr-calibrate: a trained model becomes calibrated to the true probabilities of the simulator."""

import re
from pathlib import Path

import pytest

from benchmarks import RESULTS
from benchmarks.calibrate import SEGMENT, calibrate, main, make_log, planted
from model.data.synthetic import generate

REPORT = RESULTS / "calibrate.md"


def test_a_small_log_gives_the_report(tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    assert main(["--data", str(tmp_path), "--rows", "30000", "30000", "20000", "--out", str(out)]) == 0
    text = out.read_text()
    assert len(re.findall(r"^\| (?:as trained|logits x 1.3|probabilities x 1.3) \|", text, re.MULTILINE)) == 16
    assert "--rows 30000 30000 20000" in text


@pytest.mark.full
@pytest.mark.timeout(900)
def test_calibrated_probabilities_are_the_true_ones(tmp_path: Path) -> None:
    """4,000,000 impressions in valid, of which a tenth of the non-clicks is kept."""
    arguments = ["--data", str(tmp_path), "--seed", "1", "--rows", "1000000", "4000000", "1000000"]
    assert generate.main(arguments) == 0
    log = make_log(tmp_path, "same-days", same_days=True)
    for name, source in planted(log.source):
        before, after, _ = calibrate(log, source, "isotonic", SEGMENT)
        assert abs(before.overall - 1) > 0.05, name
        assert after.overall == pytest.approx(1, abs=0.01), name
        assert after.worst == pytest.approx(1, abs=0.03), name


def test_the_committed_report_shows_what_the_page_says() -> None:
    """Overall within 1% and segments within 3%, where valid and test are requests of the same days."""
    text = REPORT.read_text()
    table = text[text.index("## Valid and test are requests of the same days") : text.index("## Test is later")]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ") and " x 1.3" in line]
    assert len(rows) == 8
    for row in rows:
        assert float(row[4]) == pytest.approx(1, abs=0.01), row
        assert row[2] == "none" or float(row[6]) == pytest.approx(1, abs=0.03), row
