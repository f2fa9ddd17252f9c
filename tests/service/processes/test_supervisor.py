"""Workers that cannot be started, or that exit before they are ready."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import create_server, socket

import httpx
import pytest

from service.processes.supervisor import Supervisor
from service.settings import Settings
from service.telemetry.metrics_folder import FOLDER_VARIABLE
from tests.support.processes import NO_TLS, TIMEOUT_S, children, eventually, start


@pytest.fixture
def listener() -> Iterator[socket]:
    with create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter that workers are started with. A test can remove it."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[None]:
    task = asyncio.create_task(supervisor.run())
    try:
        yield
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not true():
            await asyncio.sleep(0.02)


async def until_ready(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while (await client.get(url)).status_code != 200:
            await asyncio.sleep(0.02)


async def test_the_server_stops_with_a_message_if_the_first_worker_cannot_be_started(
    bundle: Path, tmp_path: Path, listener: socket, python: Path, caplog: pytest.LogCaptureFixture
) -> None:
    python.unlink()
    assert await Supervisor(Settings(bundle=bundle), 2, [listener], tmp_path, print_curl=False).run() == 2
    assert caplog.messages == [
        "Cannot start a worker: No such file or directory. Stopping. Check the limits on processes and memory."
    ]


async def test_starting_a_later_worker_is_retried_while_the_first_serves(
    bundle: Path,
    tmp_path: Path,
    listener: socket,
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.processes.supervisor.MAX_PAUSE_S", 0.05)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    aside, others = tmp_path / "aside", children(os.getpid())
    async with running(Supervisor(Settings(bundle=bundle), 2, [listener], tmp_path, print_curl=False)):
        await until(lambda: children(os.getpid()) != others)
        python.rename(aside)
        await until(lambda: "Cannot start a worker" in caplog.text)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=NO_TLS) as client:
            port = listener.getsockname()[1]
            assert (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
        aside.rename(python)
        await until(lambda: len(children(os.getpid())) == len(others) + 2)


async def test_the_pauses_between_failed_starts_increase(
    bundle: Path,
    tmp_path: Path,
    listener: socket,
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bundle that cannot be opened would otherwise take all of the CPU, the longer a start takes the more."""
    monkeypatch.setattr("service.processes.supervisor.MIN_LIFETIME_S", 0.0)
    monkeypatch.setattr("service.processes.supervisor.FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr("service.processes.supervisor.MAX_PAUSE_S", 0.5)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    others = set(children(os.getpid()))

    def pauses() -> list[str]:
        return [message.split("starts in ")[1] for message in caplog.messages if "A new one starts" in message]

    supervisor = Supervisor(Settings(bundle=bundle), 1, [listener], tmp_path, print_curl=False)
    async with running(supervisor), httpx.AsyncClient(timeout=TIMEOUT_S, verify=NO_TLS) as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/readyz"
        await until_ready(client, url)
        working = python.read_text()
        python.write_text("#!/bin/sh\nexit 3\n")
        (worker,) = set(children(os.getpid())) - others
        os.kill(worker, signal.SIGKILL)
        await until(lambda: len(pauses()) >= 6)
        assert pauses()[:6] == ["0.0 s.", "0.1 s.", "0.2 s.", "0.4 s.", "0.5 s.", "0.5 s."]
        python.write_text(working)
        await until_ready(client, url)
        (worker,) = set(children(os.getpid())) - others
        os.kill(worker, signal.SIGKILL)
        await until(lambda: pauses()[-1] == "0.0 s.")


async def test_a_worker_is_replaced_before_the_reason_of_a_sigbus_is_found(
    bundle: Path, tmp_path: Path, listener: socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    def fail_slowly(folder: Path, *, vocabulary: bool) -> None:
        go_on.wait(TIMEOUT_S)
        raise OSError("the disk is gone")

    monkeypatch.setattr("service.processes.supervisor.MAX_PAUSE_S", 0.05)
    monkeypatch.setattr("service.processes.supervisor.open_bundle", fail_slowly)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    others = set(children(os.getpid()))
    supervisor = Supervisor(Settings(bundle=bundle), 1, [listener], tmp_path, print_curl=False)
    async with running(supervisor), httpx.AsyncClient(timeout=TIMEOUT_S, verify=NO_TLS) as client:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/readyz"
        await until_ready(client, url)
        (worker,) = set(children(os.getpid())) - others
        os.kill(worker, signal.SIGBUS)
        await until(lambda: bool(set(children(os.getpid())) - others - {worker}))
        go_on.set()
        await until(lambda: f"The bundle {bundle} cannot be checked" in caplog.text)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, verify=NO_TLS) as another:
            await until_ready(another, url)
    assert "the disk is gone" in caplog.text
    assert "Stopping because the supervisor failed" not in caplog.text


def test_a_first_worker_that_is_killed_is_reported(bundle: Path) -> None:
    with start(CTR_BUNDLE=str(bundle)) as process:
        eventually(lambda: len(children(process.pid)) > 0, "a worker is running")
        os.kill(children(process.pid)[0], signal.SIGKILL)
        out, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert out == ""
    assert "The first worker was killed (SIGKILL) before it was ready" in errors
