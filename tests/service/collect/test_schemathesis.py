"""Requests that schemathesis generates from the OpenAPI document get only responses that the document describes."""

from pathlib import Path

import pytest

from tests.service.api.test_schemathesis import run
from tests.support.collect import collecting


@pytest.mark.parametrize("examples", [20, pytest.param(100, marks=pytest.mark.full)])
def test_ctr_collect_conforms_to_its_openapi_document(tmp_path: Path, examples: int) -> None:
    (tmp_path / "work").mkdir()
    with collecting(tmp_path / "events") as server:
        output = run(server.url, tmp_path / "work", "--max-examples", str(examples))
    assert "4 selected / 4 total" in output
    assert " passed" in output
    assert " failed" not in output
