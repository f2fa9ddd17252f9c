"""`ctr-serve` from an operator's view: processes, metrics, models, requests and raw connections."""

import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from contract.bundle import GOLDEN, write_manifest
from contract.calibration import Calibration
from contract.golden import read_golden, write_golden
from tests.support.app import a_request
from tests.support.paths import ROOT
from tests.support.small_bundle import SHIFT, write_small_bundle

TIMEOUT_S = 60.0  # long, because the machine may be busy
ACCEPT_S = 10.0
# For plain HTTP. Without it, httpx loads the root certificates for every client and request, which takes 25 ms.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
BODY = json.dumps(a_request(timeout_ms=5000)).encode()
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
SERVICE = ("-m", "service")
# The server verifies a new bundle at the lowest priority, so it would get no CPU time while other tests are running.
KEEPS_PRIORITY = (
    "-c",
    "import os, runpy\n"
    "os.setpriority = os.sched_setscheduler = lambda *arguments: None\n"
    "runpy.run_module('service', run_name='__main__')",
)


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    curl: list[str]

    @property
    def url(self) -> str:
        return next(word for word in self.curl if word.startswith("http://")).removesuffix("/v1/score")


def start(program: Sequence[str] = SERVICE, /, **settings: str) -> subprocess.Popen[str]:
    """Start ctr-serve.

    Args:
        program: `SERVICE`, or `KEEPS_PRIORITY` to load other bundles on a busy machine.
        settings: `CTR_*` variables. Variables from the environment are not passed on.
    """
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("CTR_")}
    environment |= {"CTR_PORT": "0", **settings}
    command = [sys.executable, *program, "--print-curl"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextmanager
def serving(bundle: Path | str, program: Sequence[str] = SERVICE, /, **settings: str) -> Iterator[Server]:
    """Run ctr-serve until the context exits. The server is ready, because it has printed its curl command.

    For the arguments, see `start`.
    """
    with start(program, CTR_BUNDLE=str(bundle), **settings) as process:
        assert process.stdout is not None
        try:
            yield Server(process, shlex.split(process.stdout.readline()))
        finally:
            process.kill()


def get(url: str, **options: Any) -> httpx.Response:
    """Send a GET request on a new connection. For the options, see httpx."""
    return httpx.get(url, **{"timeout": TIMEOUT_S, "verify": NO_TLS, **options})


def post(url: str, **options: Any) -> httpx.Response:
    """Send a POST request on a new connection. For the options, see httpx."""
    return httpx.post(url, **{"timeout": TIMEOUT_S, "verify": NO_TLS, **options})


def client_for(url: str) -> httpx.Client:
    """Return a client for a server. It keeps its connections open."""
    return httpx.Client(base_url=url, timeout=30, verify=NO_TLS)


def score(server: Server) -> None:
    """Send a scoring request on a new connection, and check that the answer is 200."""
    answer = post(f"{server.url}/v1/score", json=a_request(timeout_ms=5000))
    assert answer.status_code == 200, answer.text


def accepting_workers(server: Server, connections: int = 8) -> int:
    """Open this many connections, and return how many workers have accepted one of them.

    A worker that is still starting has not accepted any connection, although it exists and uses CPU time.
    """
    port = urlsplit(server.url).port
    with ExitStack() as opened:
        opened_ports = {opened.enter_context(connected(server)).getsockname()[1] for _ in range(connections)}

        def accepted() -> list[set[int]]:
            return [opened_ports & client_ports(worker, port) for worker in children(server.process.pid)]

        # If a worker exits in the meantime, its connections are not accepted again.
        end_s = time.monotonic() + ACCEPT_S
        while sum(map(len, found := accepted())) < connections and time.monotonic() < end_s:
            time.sleep(0.05)
        return sum(map(bool, found))


def client_ports(worker: int, port: int | None) -> set[int]:
    """Return the client ports of the connections to `port` that the worker has accepted: none if it has exited."""
    try:
        connections = psutil.Process(worker).net_connections("tcp")
    except psutil.NoSuchProcess:
        return set()
    return {at.raddr.port for at in connections if at.raddr and at.laddr.port == port}


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        yield connection


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    with closing(HTTPResponse(connection)) as response:
        response.begin()
        return response.status, json.loads(response.read())


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def eventually(true: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end_s:
        if true():
            return
        time.sleep(0.05)
    raise AssertionError(f"this did not happen within {TIMEOUT_S} s: {what}")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def metric(url: str, name: str) -> float:
    """Return the value of one series, or 0 if there is none. `name` is in Prometheus's text format, with labels."""
    text = get(f"{url}/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def served_version(url: str) -> str:
    version: str = get(f"{url}/v1/model").json()["version"]
    return version


def with_wrong_golden(bundle: Path, folder: Path) -> Path:
    """Create an intact bundle whose model does not reproduce its golden answers."""
    shutil.copytree(bundle, folder)
    golden = read_golden(folder / GOLDEN)
    golden[0].ctr[0] = 0.999
    write_golden(golden, folder / GOLDEN)
    write_manifest(folder, "wrong", 1, {}, Calibration(shift=SHIFT))
    return folder


def another_bundle(folder: Path) -> Path:
    return write_small_bundle(folder, seed=1, name="another")


def sockets(pid: int) -> int:
    """Return the number of sockets that the process has open."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except OSError:  # closed in the meantime
            continue
    return sum(link.startswith("socket:") for link in links)


def without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("CTR_")}


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def a_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
