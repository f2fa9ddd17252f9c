"""Requests that schemathesis generates from the OpenAPI document get only responses that the document describes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import DEMO
from tests.support.processes import serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# 504 is correct for a deadline of a millisecond. Any other 5xx status is an error.
CONFIGURATION = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "4xx", 504]\n'
KEY = "a-key-for-these-tests"


def run(url: str, folder: Path, *options: str) -> str:
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--checks", CHECKS]
    command += ["--seed", "1", "--no-color", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("examples", [20, pytest.param(100, marks=pytest.mark.full)])
def test_the_service_conforms_to_its_openapi_document(tmp_path: Path, examples: int) -> None:
    with serving(DEMO, CTR_WORKERS="1") as server:
        output = run(server.url, tmp_path, "--max-examples", str(examples))
    assert "6 selected / 6 total" in output
    assert "No issues found" in output


@pytest.mark.parametrize("examples", [5, pytest.param(20, marks=pytest.mark.full)])
def test_a_service_with_api_keys_conforms_too(tmp_path: Path, examples: int) -> None:
    (tmp_path / "keys").write_text(f"tests {KEY}\n")
    with serving(DEMO, CTR_WORKERS="1", CTR_API_KEYS_FILE=str(tmp_path / "keys")) as server:
        # The test above has the other phases.
        options = ("--max-examples", str(examples), "--phases", "examples,fuzzing")
        run(server.url, tmp_path, *options)
        run(server.url, tmp_path, *options, "--header", f"X-Api-Key: {KEY}")
