"""The examples run against a real server, and their clients retry and keep their deadlines."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.http_servers import Serve, answer, listening, read_request
from tests.support.paths import DEMO, ROOT
from tests.support.processes import Server, serving

EXAMPLES = ROOT / "examples"
CLIENTS = {"python": [sys.executable, str(EXAMPLES / "client.py")], "node": ["node", str(EXAMPLES / "client.mjs")]}
SCORES = json.dumps({"scores": [{"id": "ad-1", "ctr": 0.25}], "degraded": []}).encode()
PROBLEM = json.dumps({"status": 429, "title": "Overloaded", "detail": "Too many requests"}).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(DEMO, CTR_WORKERS="1", CTR_TIMEOUT_MS="5000") as server:
        yield server


def run_client(language: str, url: str) -> "subprocess.CompletedProcess[str]":
    if language == "node" and shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    return subprocess.run([*CLIENTS[language], url], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("language", CLIENTS)
def test_a_client_prints_the_scores_of_a_running_server(server: Server, language: str) -> None:
    done = run_client(language, server.url)
    assert done.returncode == 0, done.stderr
    scores = [float(ctr) for ctr in re.findall(r"^ad-\d: (0\.\d{4})$", done.stdout, re.MULTILINE)]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("language", CLIENTS)
def test_a_client_retries_after_429_on_the_same_connection(language: str) -> None:
    connections = []

    async def refuse_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        replies = [answer(PROBLEM, "Retry-After: 0", status="429 Too Many Requests"), answer(SCORES)]
        while replies and await read_request(reader) is not None:
            writer.write(replies.pop(0))

    with listening(refuse_once) as url:
        done = run_client(language, url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ad-1: 0.2500\n"
    assert len(connections) == 1


@pytest.mark.parametrize("language", CLIENTS)
def test_a_client_gives_up_at_its_deadline(language: str) -> None:
    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    serve: Serve = never_answer
    with listening(serve) as url:
        start_s = time.monotonic()
        done = run_client(language, url)
        assert time.monotonic() - start_s < 30  # The deadline is 1 s. The rest is for starting the interpreter.
    assert done.returncode != 0
    assert "no answer within 1000 ms" in done.stderr


def test_the_notebook_trains_and_explains(tmp_path: Path) -> None:
    """The notebook's code cells run in order, as one script, on a smaller log."""
    cells = json.loads((EXAMPLES / "train_and_explain.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    script = tmp_path / "notebook.py"
    text = "\n\n".join(code)
    assert '"--requests", 2000' in text
    script.write_text(text.replace('"--requests", 2000', '"--requests", 500'))
    environment = os.environ | {"MPLBACKEND": "agg", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "ad-7: click probability" in done.stdout
    assert re.search(r"test AUC 0\.\d+", done.stdout)
