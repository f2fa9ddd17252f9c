"""Reloads: concurrent requests are combined, a failure rolls back every worker, and a new worker catches up."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.models import store as stores
from service.models.preflight import version_of
from service.processes.ipc import Channel, Load, Message, PeerClosed, Rebalance, Reply
from service.processes.reload import Reloader, hide_paths
from service.processes.worker_process import WorkerProcess
from service.settings import Settings
from tests.support.processes import TIMEOUT_S, another_bundle

OnLoad = Callable[[Path], Awaitable[str | None]]


@pytest.fixture
def store(bundle: Path, tmp_path: Path) -> Path:
    """A store with two versions. The small bundle is current."""
    folder = tmp_path / "store"
    assert stores.main(["add", str(folder), str(another_bundle(tmp_path / "another"))]) == 0
    assert stores.main(["add", str(folder), str(bundle), "--activate"]) == 0
    return folder


@pytest.fixture
def new(store: Path, tmp_path: Path) -> Path:
    """The folder of the version that is not current."""
    return store / "versions" / version_of(tmp_path / "another")


@pytest.fixture(autouse=True)
def _check_keeps_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check new bundles at normal priority. At idle priority, a check gets no CPU time while other tests run."""
    monkeypatch.setattr("os.setpriority", lambda *arguments: None)
    monkeypatch.setattr("os.sched_setscheduler", lambda *arguments: None)


@asynccontextmanager
async def started(folder: Path, on_load: OnLoad) -> AsyncIterator[tuple[WorkerProcess, list[Path]]]:
    """Start an idle process as a worker, and reply to the Load messages that are sent to it.

    Args:
        folder: The bundle that the worker serves.
        on_load: Called with the folder of each Load message. Returns the problem for the reply, or None.

    Yields:
        The worker, and the folders of the Load messages so far.
    """
    loads: list[Path] = []

    async def handle(message: Message) -> Reply | None:
        if not isinstance(message, Load):
            return None
        loads.append(Path(message.folder))
        return Reply(version_of(loads[-1]), await on_load(loads[-1]))

    own, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec("sleep", "60")
    channel, peer = Channel(handle), Channel(handle)
    tasks = [asyncio.create_task(channel.run(own)), asyncio.create_task(peer.run(theirs))]
    try:
        await until_open(channel)
        yield WorkerProcess(process, channel, time.monotonic(), folder, slot=0, version=version_of(folder)), loads
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_open(channel: Channel) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                channel.send(Rebalance(1))
                return
            except PeerClosed:
                await asyncio.sleep(0)


async def succeed(folder: Path) -> str | None:
    return None


def activate(store: Path, folder: Path) -> None:
    assert stores.main(["activate", str(store), folder.name]) == 0


async def test_a_worker_that_cannot_load_the_bundle_rolls_back_the_others(store: Path, new: Path) -> None:
    async def fail_on_new(folder: Path) -> str | None:
        return f"no memory for {folder}" if folder == new else None

    workers: list[WorkerProcess] = []
    registry = CollectorRegistry()
    reloader = Reloader(Settings(store=store), workers, registry)
    old = reloader.folder
    async with started(old, succeed) as (first, first_loads), started(old, fail_on_new) as (second, second_loads):
        workers += [first, second]
        activate(store, new)
        reply = await reloader.reload()
    assert reply.problem == f"no memory for {new.name}"
    assert (first_loads, second_loads) == ([new, old], [new])
    assert {reloader.folder, first.folder, second.folder} == {old}
    assert registry.get_sample_value("ctr_reloads_total", {"outcome": "refused"}) == 1


async def test_a_worker_that_does_not_reply_is_killed_and_the_others_are_loaded(store: Path, new: Path) -> None:
    async def hang(folder: Path) -> str | None:
        raise asyncio.CancelledError  # The channel sends no reply.

    workers: list[WorkerProcess] = []
    reloader = Reloader(Settings(store=store), workers, CollectorRegistry())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.processes.worker_process.LOAD_TIMEOUT_S", 0.1)
        async with started(reloader.folder, hang) as (first, _), started(reloader.folder, succeed) as (second, _):
            workers += [first, second]
            activate(store, new)
            reply = await reloader.reload()
            assert await first.process.wait() == -signal.SIGKILL
            assert second.process.returncode is None
    assert reply == Reply(new.name)
    assert second.folder == new


async def test_requests_during_a_reload_share_the_next_reload(store: Path, new: Path) -> None:
    loading, go_on = asyncio.Event(), asyncio.Event()

    async def load_slowly(folder: Path) -> str | None:
        loading.set()
        await go_on.wait()
        return None

    workers: list[WorkerProcess] = []
    registry = CollectorRegistry()
    reloader = Reloader(Settings(store=store), workers, registry)
    async with started(reloader.folder, load_slowly) as (worker, loads):
        workers.append(worker)
        activate(store, new)
        first = asyncio.create_task(reloader.reload())
        await asyncio.wait_for(loading.wait(), TIMEOUT_S)
        others = [asyncio.create_task(reloader.reload()) for _ in range(10)]
        await asyncio.sleep(0)
        go_on.set()
        assert set(await asyncio.gather(first, *others)) == {Reply(new.name)}
    assert loads == [new]
    assert registry.get_sample_value("ctr_reloads_total", {"outcome": "loaded"}) == 1
    assert registry.get_sample_value("ctr_reloads_total", {"outcome": "unchanged"}) == 1


async def test_a_worker_that_was_started_before_a_reload_catches_up(store: Path, new: Path) -> None:
    reloader = Reloader(Settings(store=store), [], CollectorRegistry())
    old = reloader.folder
    activate(store, new)
    assert (await reloader.reload()).problem is None
    async with started(old, succeed) as (worker, loads):
        await reloader.catch_up(worker)
        await reloader.catch_up(worker)
    assert loads == [new]


async def test_a_version_that_was_rolled_back_is_not_a_fallback(store: Path, new: Path) -> None:
    reloader = Reloader(Settings(store=store), [], CollectorRegistry())
    old = reloader.folder
    assert not reloader.has_fallback
    activate(store, new)
    await reloader.reload()
    assert reloader.has_fallback
    assert stores.main(["rollback", str(store)]) == 0
    await reloader.reload()
    assert reloader.folder == old
    assert not reloader.fall_back()
    assert reloader.folder == old


async def test_a_version_that_was_refused_is_not_a_fallback(store: Path, new: Path) -> None:
    reloader = Reloader(Settings(store=store), [], CollectorRegistry())
    old = reloader.folder
    (new / "model.onnx").unlink()
    activate(store, new)
    assert (await reloader.reload()).problem is not None
    assert reloader.folder == old
    assert not reloader.fall_back()


async def test_a_worker_that_cannot_catch_up_is_killed(store: Path, new: Path) -> None:
    async def fail(folder: Path) -> str | None:
        return "no memory"

    reloader = Reloader(Settings(store=store), [], CollectorRegistry())
    async with started(new, fail) as (worker, _):
        await reloader.catch_up(worker)
        assert await worker.process.wait() == -signal.SIGKILL


def test_a_problem_keeps_the_last_part_of_each_path(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "versions" / "abc"
    problem = f"{folder}/manifest.json is missing, see {tmp_path / 'store'}"
    assert hide_paths(problem, folder, tmp_path / "store", None) == "abc/manifest.json is missing, see store"
