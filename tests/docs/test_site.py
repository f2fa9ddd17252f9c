"""The site: links to files outside docs/ lead to copies of these files, and nothing is loaded from other hosts."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.scripts.site import outside_files, rewritten
from tests.support.documentation import PAGES
from tests.support.paths import ROOT

ASSET = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(https?:)?//|<link\b[^>]*\bhref=\"(https?:)?//")


def test_a_link_to_a_report_leads_to_its_copy_on_the_site() -> None:
    page = "See [the report](../loadtest/results/soak.md#phases)."
    assert rewritten(page, "benchmarks.md") == "See [the report](repository/loadtest/results/soak.md#phases)."


def test_a_link_to_a_page_of_the_site_is_unchanged() -> None:
    page = "[a](training.md) [b](results/frappe.md#data) [c](#here) [d](https://example.com)"
    assert rewritten(page, "data-format.md") == page


def test_a_report_links_to_a_page_of_the_site_and_to_its_neighbors() -> None:
    page = "[a](../../docs/decisions/0010-every-model-on-the-same-rails.md) [b](deepfm.py)"
    site = "[a](../../../decisions/0010-every-model-on-the-same-rails.md) [b](deepfm.py)"
    assert rewritten(page, "repository/model/baselines/README.md") == site


def test_code_is_not_rewritten() -> None:
    page = "```sh\n[a](../README.md)\n```\n"
    assert rewritten(page, "data-format.md") == page


def test_the_site_has_every_report_and_every_linked_file() -> None:
    files = outside_files([str(page.relative_to(ROOT)) for page in PAGES[1:]])
    reports = [path for pattern in ("loadtest/results/*.md", "benchmarks/results/*.md") for path in ROOT.glob(pattern)]
    assert {str(report.relative_to(ROOT)) for report in reports} <= set(files)
    assert "experiments/frappe/results/models-flops.png" in files
    assert "model/baselines/deepfm.py" in files
    assert not [path for path in files if path.startswith("docs/")]


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="MkDocs is not installed: run make docs")
def test_the_site_builds_without_warnings_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        assert not ASSET.search(page.read_text()), page
