"""`python -m service` as a process of its own, requests to it, and raw connections."""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx

from tests.support.app import a_request
from tests.support.paths import ROOT
from tests.support.processes import children

BODY = json.dumps(a_request(timeout_ms=5000)).encode()
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    curl: list[str]

    @property
    def url(self) -> str:
        return next(word for word in self.curl if word.startswith("http://")).removesuffix("/v1/score")


def start(**settings: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("CTR_")}
    environment |= {"CTR_PORT": "0", **settings}
    command = [sys.executable, "-m", "service", "--print-curl"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextmanager
def serving(bundle: Path | str, **settings: str) -> Iterator[Server]:
    """From the printed curl line on, the server is ready."""
    with start(CTR_BUNDLE=str(bundle), **settings) as process:
        assert process.stdout is not None
        try:
            yield Server(process, shlex.split(process.stdout.readline()))
        finally:
            process.kill()


def score(server: Server) -> None:
    """On a connection of its own."""
    answer = httpx.post(f"{server.url}/v1/score", json=a_request(), timeout=30)
    assert answer.status_code == 200, answer.text


def served_by(server: Server, requests: int) -> int:
    """How many workers have answered so many more requests, by the CPU time that they spent."""
    before = {pid: cpu_ticks(pid) for pid in children(server.process.pid)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: score(server), range(requests)))
    return sum(cpu_ticks(pid) > ticks for pid, ticks in before.items())


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    with closing(HTTPResponse(connection)) as response:
        response.begin()
        return response.status, json.loads(response.read())
