"""Starts the workers, replaces those that die, has them serve new models, and ends them.

All share one listening socket, so connections that nobody has taken yet outlive any worker. This process takes none: it
verifies new bundles, merges metrics, and watches.
"""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.http.connection_counts import Board
from service.models.preflight import check, version_of
from service.models.store import CURRENT, StoreError, current_bundle
from service.processes.ipc import Channel, Done, Drain, Gone, Load, Message, Ready, Reload, Scrape, Spread
from service.processes.spawn import TESTED, spawn
from service.settings import Settings
from service.telemetry.multiprocess import forget_latencies, forget_process, merge_metrics

log = logging.getLogger(__name__)

WATCH_S = 0.5
LOAD_S = 120.0
KILL_S = 5.0  # after a worker's own time is over
SHORTEST_LIFE_S = 10.0  # a worker that dies younger is started again later and later
LONGEST_PAUSE_S = 10.0
KEEP_LATENCIES_S = 60.0
CANNOT_START = 2  # as an exit code


@dataclass(eq=False)
class Worker:
    """folder: of the bundle that it was told to serve; version: that it says it serves; place: on the board."""

    process: asyncio.subprocess.Process
    channel: Channel
    started_s: float
    folder: Path
    place: int
    version: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Lives in one event loop. metrics: the folder that this process and its workers share."""

    def __init__(
        self,
        settings: Settings,
        workers: int,
        listeners: Sequence[socket.socket],
        metrics: Path,
        print_curl: bool,
    ) -> None:
        self._settings = settings
        self._number = workers
        self._listeners = listeners
        self._metrics = metrics
        self._print_curl = print_curl
        self._seen = None if settings.store is None else _stamp(settings.store)
        self._folder = self._current()
        self._workers: set[Worker] = set()
        self._board = Board(metrics, places=workers)
        self._places = set(range(workers))  # that are free
        self._tasks: set[asyncio.Task[object]] = set()
        self._reloading = asyncio.Lock()
        self._next_reload: asyncio.Task[Done] | None = None
        self._ending = asyncio.Event()
        self._exit_code = 0
        self._has_served = False
        registry = CollectorRegistry()
        self._reloads = Counter("ctr_reloads", "New models, by outcome", ["outcome"], registry=registry)
        self._deaths = Counter("ctr_worker_deaths", "Workers that died unasked", registry=registry)
        self._alive = Gauge("ctr_workers", "Workers", registry=registry, multiprocess_mode="livesum")
        for outcome in ("loaded", "unchanged", "refused"):
            self._reloads.labels(outcome)

    async def run(self) -> int:
        """Until a signal, or until the first worker cannot start. The exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._go(self.reload()))
        self._go(self._start_all())
        if self._settings.store is not None:
            self._go(self._watch(self._settings.store))
        await self._ending.wait()
        await self._end_all()
        return self._exit_code

    async def reload(self) -> Done:
        """Has all workers serve what is current now; one bundle at a time.

        Whoever asks while one is being loaded waits for the next one together with all others who do.
        """
        if self._next_reload is None:
            self._next_reload = asyncio.create_task(self._reload_in_turn())
        return await asyncio.shield(self._next_reload)

    async def _reload_in_turn(self) -> Done:
        async with self._reloading:
            self._next_reload = None
            try:
                outcome, done = await self._reload()
            except OSError as error:  # no memory or no file descriptor for the check, say
                outcome, done = "refused", Done(problem=f"it cannot be checked: {error.strerror}")
            self._reloads.labels(outcome).inc()
            if done.problem:
                log.error("the new model is refused, the old one goes on: %s", done.problem)
            return done

    async def _reload(self) -> tuple[str, Done]:
        try:
            folder = self._current()
        except StoreError as error:
            return "refused", Done(problem=self._without_path(str(error)))
        version = version_of(folder)
        if version and self._workers and all(worker.version == version for worker in self._workers):
            log.info("a new model was asked for, and %s is served already", version)  # by the pointer and by somebody
            return "unchanged", Done(version)
        if (problem := await check(folder, self._settings.vocabulary)) is not None:
            return "refused", Done(problem=self._without_path(problem, folder))
        old, self._folder = self._folder, folder
        for worker in list(self._workers):
            if (problem := await self._load(worker, folder)) is not None:
                await self._go_back(old)
                return "refused", Done(problem=self._without_path(problem, folder))
        return "loaded", Done(version)

    async def _go_back(self, old: Path) -> None:
        self._folder = old
        for worker in list(self._workers):
            if worker.folder != old and await self._load(worker, old) is not None:
                worker.process.kill()  # the one in its place serves the old one

    async def _load(self, worker: Worker, folder: Path) -> str | None:
        """Why it does not serve that now. One that does not answer is replaced, by one that does."""
        try:
            done = await worker.channel.ask(Load(str(folder)), LOAD_S)
        except Gone:
            with suppress(ProcessLookupError):
                worker.process.kill()
            return None
        if done.problem is None:
            worker.folder, worker.version = folder, done.text
        return done.problem

    def _current(self) -> Path:
        """Raises StoreError."""
        store, bundle = self._settings.store, self._settings.bundle
        if store is not None:
            return current_bundle(store)
        assert bundle is not None
        return bundle

    async def _watch(self, store: Path) -> None:
        """A changed pointer is a wish for another model."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = _stamp(store)
            if now != self._seen:
                self._seen = now
                await self.reload()

    async def _start_all(self) -> None:
        """The first alone: what keeps it from starting would keep the others, and is said once."""
        try:
            worker = await self._start("--print-curl") if self._print_curl else await self._start()
        except OSError as error:
            log.error("no worker can be started (%s), and all ends", error.strerror)  # a sentence
            self._exit_code = CANNOT_START
            self._ending.set()
            return
        if worker is None:
            return
        await worker.ready.wait()
        for _ in range(self._number - 1):
            await self._start_in_time(TESTED)

    async def _start(self, *options: str) -> Worker | None:
        """None when all is about to end."""
        if self._ending.is_set():
            return None
        place, folder = self._places.pop(), self._folder
        try:
            process, control = await spawn(self._listeners, folder, place, options)
        except OSError:
            self._places.add(place)
            raise
        worker = Worker(
            process, Channel(lambda message: self._answer(worker, message)), time.monotonic(), folder, place
        )
        self._workers.add(worker)
        self._alive.set(len(self._workers))
        self._go(worker.channel.run(control))
        self._go(self._look_after(worker))
        self._go(self._catch_up(worker))
        return worker

    async def _catch_up(self, worker: Worker) -> None:
        """With what happened while it was started: a new model, or the end."""
        if self._ending.is_set():
            worker.process.kill()  # it has nothing in hand yet
            return
        async with self._reloading:
            if worker.folder != self._folder and await self._load(worker, self._folder) is not None:
                worker.process.kill()

    async def _look_after(self, worker: Worker) -> None:
        code = await worker.process.wait()
        self._workers.discard(worker)
        self._board.leave(worker.place)
        self._places.add(worker.place)
        self._alive.set(len(self._workers))
        pid = worker.process.pid
        self._forget(pid)
        if self._ending.is_set():
            return
        if not self._has_served and not self._workers:
            if code < 0:  # else it has said why
                log.error("the first worker died (%s) before it served, and all ends: is there memory?", _cause(code))
            self._exit_code = code if code > 0 else 1
            self._ending.set()
            return
        self._deaths.inc()
        lived_s = time.monotonic() - worker.started_s
        pause_s = 0.0 if lived_s > SHORTEST_LIFE_S else min(LONGEST_PAUSE_S, 10 / max(1.0, lived_s) ** 2)
        log.error("worker %d died (%s) and is replaced in %.1f s", pid, _cause(code), pause_s)
        await asyncio.sleep(pause_s)
        await self._replace()

    async def _replace(self) -> None:
        # One that takes connections only when it is ready leaves them to the others, or lets them wait for a moment; a
        # vocabulary that Redis has lost may take longer, and then somebody has to say why nothing is scored.
        alone = not any(worker.ready.is_set() for worker in self._workers)
        options = [] if alone and self._settings.vocabulary == "redis" else [TESTED]
        await self._start_in_time(*options)

    async def _start_in_time(self, *options: str) -> None:
        """Tries until it can be started."""
        while True:
            try:
                await self._start(*options)
                return
            except OSError as error:
                log.error("a worker cannot be started, the next try is in %g s: %s", LONGEST_PAUSE_S, error.strerror)
                await asyncio.sleep(LONGEST_PAUSE_S)

    def _forget(self, pid: int) -> None:
        try:
            forget_process(self._metrics, pid)
        except (OSError, ValueError, RuntimeError):  # a file of metrics that was being written when its process died
            log.exception("the metrics of a process that has ended are lost")
        asyncio.get_running_loop().call_later(KEEP_LATENCIES_S, forget_latencies, self._metrics, pid)

    async def _answer(self, worker: Worker, message: Message) -> Done | None:
        if isinstance(message, Ready):
            worker.version = message.version
            worker.ready.set()
            self._has_served = True
            self._spread(worker)
        if isinstance(message, Reload):
            return await self.reload()
        if isinstance(message, Scrape):
            return Done(merge_metrics(self._metrics).decode())
        return None

    def _without_path(self, problem: str, *folders: Path) -> str:
        """It may go to a client, who need not know where things lie."""
        for path in (*folders, self._settings.store):
            if path is not None:
                problem = problem.replace(str(path.resolve()), path.name).replace(str(path), path.name)
        return problem

    def _spread(self, joined: Worker) -> None:
        """Connections live long: without this the others would keep all of them, and with them all the work."""
        for worker in self._workers - {joined}:
            if worker.ready.is_set():
                with suppress(Gone):
                    worker.channel.tell(Spread(len(self._workers)))

    async def _end_all(self) -> None:
        """Each finishes what it has in hand, within its own time."""
        for worker in self._workers:
            with suppress(Gone):
                worker.channel.tell(Drain())
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGTERM)
        notice_s, drain_s = self._settings.drain_notice_ms / 1e3, self._settings.drain_ms / 1e3
        ends = {asyncio.ensure_future(worker.process.wait()) for worker in self._workers}
        if ends:
            await asyncio.wait(ends, timeout=notice_s)
        for listener in self._listeners:
            listener.close()  # the last one who has it closes the port
        if ends:
            await asyncio.wait(ends, timeout=drain_s + KILL_S)
        for worker in list(self._workers):
            with suppress(ProcessLookupError):
                worker.process.kill()
        for task in self._tasks:
            task.cancel()

    def _go(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the supervisor failed, and ends", exc_info=error)
            self._exit_code = 1
            self._ending.set()


def _stamp(store: Path) -> tuple[int, int] | None:
    try:
        stat = (store / CURRENT).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
