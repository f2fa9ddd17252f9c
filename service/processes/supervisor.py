"""The main process of ctr-serve: starts the workers, replaces those that die, and stops them.

All workers share the listening sockets, so a connection that no worker has accepted yet survives the death of any
worker. The supervisor accepts none. It also merges the workers' metrics, and has them load new bundles (reload.py).
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from contract.bundle import BundleError, open_bundle
from service.http.connection_counts import ConnectionCounts
from service.processes.ipc import Channel, Drain, Message, PeerClosed, Ready, Rebalance, Reload, Reply, Scrape
from service.processes.reload import Reloader
from service.processes.worker_process import BAD_BUNDLE, WAIT_FOR_TEST, WorkerProcess, spawn
from service.settings import Settings
from service.telemetry.metrics_folder import reserve_counts, reserve_process_files
from service.telemetry.multiprocess import ENDED, forget_latencies, forget_process, merge_metrics

log = logging.getLogger(__name__)

KILL_S = 5.0  # A worker that is still running this long after CTR_DRAIN_MS is killed.
MIN_LIFETIME_S = 10.0  # A worker that dies sooner is replaced after a pause. The sooner it died, the longer the pause.
FIRST_PAUSE_S = 1.0  # After a worker that was never ready. The pause doubles until a worker is ready.
MAX_PAUSE_S = 10.0
KEEP_LATENCIES_S = 60.0  # The quantiles cover the last minute, including the latencies of dead workers.
CANNOT_START = 2  # Exit code.


class Supervisor:
    """Runs the workers of one server. Use it from one event loop only.

    Args:
        settings: The server's settings.
        workers: How many workers to run.
        listeners: The socket for requests, and the one for /admin if there is one.
        metrics: The folder that this process and its workers share.
        print_curl: Print an example request once the server is ready.

    Raises:
        StoreError: The store has no current bundle.
        NoSpace: There is no space for the files that the processes share.
    """

    def __init__(
        self,
        settings: Settings,
        workers: int,
        listeners: Sequence[socket.socket],
        metrics: Path,
        print_curl: bool,
    ) -> None:
        self._settings = settings
        self._worker_count = workers
        self._listeners = listeners
        self._metrics = metrics
        self._print_curl = print_curl
        self._workers: set[WorkerProcess] = set()
        self._counts = ConnectionCounts(metrics, slots=workers)
        self._free_slots = set(range(workers))
        self._tasks: set[asyncio.Task[object]] = set()
        self._stopping = asyncio.Event()
        self._exit_code = 0
        self._failed_starts = 0  # Workers that died before they were ready, since a worker was ready.
        self._has_served = asyncio.Event()
        registry = CollectorRegistry()
        self._reloader = Reloader(settings, self._workers, registry)
        self._deaths = Counter("ctr_worker_deaths", "Workers that exited unexpectedly", registry=registry)
        self._alive = Gauge("ctr_workers", "Running workers", registry=registry, multiprocess_mode="livesum")
        reserve_process_files(metrics)
        reserve_counts(metrics, ENDED)

    async def run(self) -> int:
        """Serve until a signal arrives or the first worker fails to start. Return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.run_in_background(self._reloader.reload()))
        self.run_in_background(self.start_all())
        if self._settings.store is not None:
            self.run_in_background(self._reloader.watch_pointer(self._settings.store))
        await self._stopping.wait()
        await self.stop_all()
        return self._exit_code

    def fail(self, exit_code: int) -> None:
        """Make `run` stop the workers and return this exit code."""
        self._exit_code = exit_code
        self._stopping.set()

    def run_in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Start a task. The server stops if the task fails."""

        def finish(task: "asyncio.Task[object]") -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("Stopping because the supervisor failed", exc_info=error)
                self.fail(1)

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(finish)

    async def start_all(self) -> None:
        """Start the first worker and, once it is ready, the others.

        A problem that prevents the first worker from starting would affect them all, and should be reported only once.
        """
        await self.start_first()
        await self._has_served.wait()
        for _ in range(self._worker_count - 1):
            await self.start_with_retries(WAIT_FOR_TEST)

    async def start_first(self) -> None:
        """Start the first worker. The server stops if the process cannot be started."""
        options = ["--print-curl"] if self._print_curl else []
        # A worker that waits for its self-test exits if the test fails, so that the previous version can be tried. If
        # only Redis has the vocabulary, the test may take a long time. A worker that does not wait can report why.
        if self._reloader.has_fallback and self._settings.vocabulary == "bundle":
            options.append(WAIT_FOR_TEST)
        try:
            await self.start(*options)
        except OSError as error:
            log.error("Cannot start a worker: %s. Stopping. Check the limits on processes and memory.", error.strerror)
            self.fail(CANNOT_START)

    async def start_with_retries(self, *options: str) -> None:
        """Start a worker. If the system cannot start a process, try again until it can."""
        while True:
            try:
                await self.start(*options)
                return
            except OSError as error:
                log.error("Cannot start a worker: %s. Trying again in %g s.", error.strerror, MAX_PAUSE_S)
                await asyncio.sleep(MAX_PAUSE_S)

    async def start(self, *options: str) -> WorkerProcess | None:
        """Start a worker with the current bundle, and monitor it.

        Args:
            options: Further command-line options of the worker.

        Returns:
            The worker, or None if the server is stopping.

        Raises:
            OSError: The process cannot be started.
        """
        if self._stopping.is_set():
            return None
        slot, folder = self._free_slots.pop(), self._reloader.folder
        try:
            process, control = await spawn(self._listeners, folder, slot, options)
        except OSError:
            self._free_slots.add(slot)
            raise
        channel = Channel(lambda message: self.handle(message, worker))
        worker = WorkerProcess(process, channel, time.monotonic(), folder, slot)
        if self._stopping.is_set():
            worker.kill()  # The server began to stop while this worker was starting, so it has no request in flight.
        self._workers.add(worker)
        self._alive.set(len(self._workers))
        self.run_in_background(channel.run(control))
        self.run_in_background(self.monitor(worker))
        self.run_in_background(self._reloader.catch_up(worker))
        return worker

    async def handle(self, message: Message, worker: WorkerProcess) -> Reply | None:
        """Handle a message from a worker."""
        match message:
            case Ready():
                worker.version = message.version
                worker.ready.set()
                self._failed_starts = 0
                self._has_served.set()
                worker.report_refused(self._reloader.refused)
                # Connections are long-lived. Without this, the new worker would have no work until clients reconnect.
                for other in self._workers - {worker}:
                    if other.ready.is_set():
                        with suppress(PeerClosed):
                            other.channel.send(Rebalance(len(self._workers)))
            case Reload():
                return await self._reloader.reload()
            case Scrape():
                return Reply(merge_metrics(self._metrics).decode())
        return None

    async def monitor(self, worker: WorkerProcess) -> None:
        """Wait until a worker exits, then replace it. If no worker has ever been ready, stop the server instead."""
        code = await worker.process.wait()
        pid = worker.process.pid
        self._workers.discard(worker)
        self._counts.clear(worker.slot)
        self._free_slots.add(worker.slot)
        self._alive.set(len(self._workers))
        self.retire_metrics(pid)
        if self._stopping.is_set():
            return
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        # A different worker may already have caused the fallback.
        is_bad = code == BAD_BUNDLE and self.none_ready and worker.folder == self._reloader.folder
        has_fallen_back = is_bad and self._reloader.fall_back()
        if not self._has_served.is_set() and not self._workers:
            if has_fallen_back:
                await self.start_first()
                return
            if code < 0:  # A worker that was not killed has printed the reason.
                log.error("The first worker was killed (%s) before it was ready. Is there enough memory?", cause)
            self.fail(CANNOT_START if code == BAD_BUNDLE else code if code > 0 else 1)
            return
        if is_bad and not has_fallen_back:
            self._reloader.start_over()
        self._deaths.inc()
        pause_s = 0.0 if has_fallen_back else self.pause_s(worker)
        log.error("Worker %d died (%s). A new one starts in %.1f s.", pid, cause, pause_s)
        if code == -signal.SIGBUS:
            self.run_in_background(self.log_sigbus(worker))  # Hashing a large bundle takes a long time.
        await asyncio.sleep(pause_s)
        # A new worker accepts no connections until its self-test has passed. If no other worker is ready, connections
        # wait briefly. But if Redis has lost the vocabulary, the test can take a long time. A worker that accepts
        # connections during the test can at least report why it cannot score.
        await self.start_with_retries(
            *([] if self.none_ready and self._settings.vocabulary == "redis" else [WAIT_FOR_TEST])
        )

    def pause_s(self, worker: WorkerProcess) -> float:
        """Return how long to wait before a worker that died is replaced, in s."""
        if not worker.ready.is_set():
            self._failed_starts += 1
            # How long the worker lived does not matter, because a large bundle takes long to check.
            return float(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failed_starts - 1, 10)))
        lifetime_s = time.monotonic() - worker.started_s
        return 0.0 if lifetime_s > MIN_LIFETIME_S else min(MAX_PAUSE_S, 10 / max(1.0, lifetime_s) ** 2)

    @property
    def none_ready(self) -> bool:
        return not any(worker.ready.is_set() for worker in self._workers)

    async def log_sigbus(self, worker: WorkerProcess) -> None:
        """Log why a worker was probably killed by SIGBUS. Never raises, because the server can continue."""
        try:
            log.error("A memory-mapped file was truncated: %s", await self.explain_sigbus(worker))
        except Exception:
            log.exception("A memory-mapped file was truncated. The bundle %s cannot be checked.", worker.folder)

    async def explain_sigbus(self, worker: WorkerProcess) -> str:
        """Return why a worker was probably killed by SIGBUS, and what to do."""
        has_vocabulary = self._settings.vocabulary == "bundle"
        try:
            await asyncio.to_thread(open_bundle, worker.folder, vocabulary=has_vocabulary)
        except BundleError as error:
            return f"{error}. Never overwrite the files of a bundle that is served: use ctr-store, or rename folders."
        free_bytes = os.statvfs(self._metrics).f_bavail * os.statvfs(self._metrics).f_frsize
        return f"the bundle is unchanged, and {self._metrics.parent} has {free_bytes} bytes left."

    def retire_metrics(self, pid: int) -> None:
        """Remove the gauges of a process that has exited, but keep its counts."""
        try:
            forget_process(self._metrics, pid)
        except (OSError, ValueError, RuntimeError):  # The process died while it wrote a file.
            log.exception("The metrics of process %d were lost", pid)
        asyncio.get_running_loop().call_later(KEEP_LATENCIES_S, forget_latencies, self._metrics, pid)

    async def stop_all(self) -> None:
        """Let every worker finish its requests in flight, and kill workers that take too long."""
        for worker in self._workers:
            with suppress(PeerClosed):
                worker.channel.send(Drain())
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGTERM)
        exits = {asyncio.ensure_future(worker.process.wait()) for worker in self._workers}
        if exits:
            await asyncio.wait(exits, timeout=self._settings.drain_notice_ms / 1e3)
        for listener in self._listeners:
            listener.close()  # The port closes when the last worker has closed it as well.
        if exits:
            await asyncio.wait(exits, timeout=self._settings.drain_ms / 1e3 + KILL_S)
        for worker in list(self._workers):
            worker.kill()
        for task in self._tasks:
            task.cancel()
