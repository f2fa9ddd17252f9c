"""Load a new bundle into all workers or none: check it, load it into the workers one by one, roll back on failure."""

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from contract.store import CURRENT, StoreError
from service.models.preflight import check, version_of
from service.models.store import current_bundle, how_to_activate, servable_bundles
from service.processes.ipc import Reply
from service.processes.worker_process import WorkerProcess
from service.settings import Settings

log = logging.getLogger(__name__)

WATCH_S = 0.5  # Time between two checks of the store's pointer.


class Reloader:
    """Changes the bundle that the workers serve. Use it from one event loop only.

    Attributes:
        folder: The bundle to serve. New workers start with it.
        current: The store's current version. Empty if there is no store.
    """

    def __init__(self, settings: Settings, workers: Collection[WorkerProcess], registry: CollectorRegistry) -> None:
        """Find the bundle to start with.

        Args:
            settings: The server's settings, which name the bundle or the store.
            workers: The running workers. The supervisor adds and removes them.
            registry: Where `ctr_reloads_total` is registered.

        Raises:
            StoreError: The store has no current bundle.
        """
        self._settings = settings
        self._workers = workers
        # Taken before the pointer is read, so that a change in between causes a reload.
        self._pointer_stamp = None if settings.store is None else pointer_stamp(settings.store)
        self.current, folders = "", [settings.bundle] if settings.bundle else []
        if settings.store is not None:
            self.current, folders = servable_bundles(settings.store)
        self.folder, *self._fallbacks = folders
        self._lock = asyncio.Lock()
        self._queued: asyncio.Task[Reply] | None = None
        self._outcomes = Counter("ctr_reloads", "Reloads by outcome", ["outcome"], registry=registry)
        for outcome in ("loaded", "unchanged", "refused"):
            self._outcomes.labels(outcome)
        self._is_refused = Gauge(
            "ctr_current_refused",
            "1 if the store's current version was refused and another version is served, otherwise 0",
            registry=registry,
            multiprocess_mode="livesum",
        )
        if self.refused:
            self.report_fallback("is missing")

    @property
    def refused(self) -> str | None:
        """The store's current version, if another version is served instead of it."""
        return self.current if self.current and self.folder.name != self.current else None

    @property
    def has_fallback(self) -> bool:
        """Whether `fall_back` has another version to try."""
        return bool(self._fallbacks)

    def fall_back(self) -> bool:
        """Choose the previous version of the store, because the version in `folder` cannot be served.

        Returns:
            False if there is no previous version.
        """
        if not self._fallbacks:
            return False
        self.folder = self._fallbacks.pop(0)
        self.report_fallback("cannot be served")
        return True

    def start_over(self) -> None:
        """Choose the store's current version again, because no version can be served. It may have been restored."""
        if self._settings.store is None:
            return
        with suppress(StoreError):
            self.current, folders = servable_bundles(self._settings.store)
            self.folder, *self._fallbacks = folders
            self._is_refused.set(bool(self.refused))

    def update_fallbacks(self) -> None:
        """Read from the store which versions to try if the version in `folder` cannot be served.

        These are the versions that were current before it. A version that was rolled back is not among them.
        """
        if self._settings.store is None:
            return
        try:
            current, folders = servable_bundles(self._settings.store)
        except StoreError:  # The reload has already reported this.
            return
        if self.folder in folders:
            self._fallbacks = folders[folders.index(self.folder) + 1 :]
        else:
            self._fallbacks = [folder for folder in folders if folder.name != current]

    def report_fallback(self, problem: str) -> None:
        """Log and count that the store's current version is not served."""
        assert self._settings.store is not None, "only a store has other versions"
        self._outcomes.labels("refused").inc()
        self._is_refused.set(1)
        log.error(
            "The store's current version %s %s. Falling back to %s. To make it current: %s",
            self.current,
            problem,
            self.folder.name,
            how_to_activate(self._settings.store, self.folder.name),
        )

    async def reload(self) -> Reply:
        """Make every worker serve the current bundle. Return its version, or why it was refused.

        Reloads run one at a time. All requests that arrive during a reload share the next one, because the current
        bundle may have changed since the running reload read it.
        """
        if self._queued is None:
            self._queued = asyncio.create_task(self._run_queued())
        return await asyncio.shield(self._queued)

    async def watch_pointer(self, store: Path) -> None:
        """Reload whenever the store's pointer to the current bundle changes."""
        while True:
            await asyncio.sleep(WATCH_S)
            stamp = pointer_stamp(store)
            if stamp != self._pointer_stamp:
                self._pointer_stamp = stamp
                await self.reload()

    async def catch_up(self, worker: WorkerProcess) -> None:
        """Make a new worker serve the same bundle as the others, if the bundle changed while it was starting."""
        async with self._lock:
            if worker.folder != self.folder and await worker.load(self.folder) is not None:
                worker.kill()  # Its replacement starts with the right bundle.

    async def _run_queued(self) -> Reply:
        """Run a reload when the previous one has finished. Log and count the outcome."""
        async with self._lock:
            self._queued = None
            try:
                outcome, reply = await self.load_current()
            except OSError as error:  # For example, no memory or file descriptors for the check.
                outcome, reply = "refused", Reply(problem=f"The bundle cannot be checked: {error.strerror}")
            self.update_fallbacks()
            self._outcomes.labels(outcome).inc()
            self._is_refused.set(bool(self.refused))
            for worker in self._workers:
                worker.report_refused(self.refused)
            if reply.problem:
                log.error("The new model was refused, and the previous one stays in service: %s", reply.problem)
            return reply

    async def load_current(self) -> tuple[str, Reply]:
        """Check the current bundle and load it into every worker that does not serve it.

        Returns:
            The outcome for `ctr_reloads_total`, and the reply to the request for the reload. The reply may reach a
            client, so it does not contain paths on the server.
        """
        store = self._settings.store
        try:
            folder = current_folder(self._settings)
        except StoreError as error:
            return "refused", Reply(problem=hide_paths(str(error), store, *folders_above(store)))
        self.current = "" if store is None else folder.name
        version = version_of(folder)
        if version and self._workers and all(worker.version == version for worker in self._workers):
            # A changed pointer and a request can both cause a reload of the same bundle.
            log.info("All workers already serve model %s", version)
            return "unchanged", Reply(version)
        problem = await check(folder, self._settings.vocabulary)
        if problem is None:
            problem = await self.load_in_workers(folder)
        if problem is not None:
            return "refused", Reply(problem=hide_paths(problem, folder, store))
        return "loaded", Reply(version)

    async def load_in_workers(self, folder: Path) -> str | None:
        """Load a bundle into the workers one by one. If a worker cannot serve it, roll back and return the reason."""
        previous, self.folder = self.folder, folder
        for worker in list(self._workers):
            problem = await worker.load(folder)
            if problem is not None:
                await self.roll_back(previous)
                return problem
        return None

    async def roll_back(self, previous: Path) -> None:
        """Load the previous bundle into every worker that serves the new one."""
        self.folder = previous
        for worker in list(self._workers):
            if worker.folder != previous and await worker.load(previous) is not None:
                worker.kill()  # Its replacement starts with the previous bundle.


def current_folder(settings: Settings) -> Path:
    """Return the folder of the bundle to serve: the store's current one, or CTR_BUNDLE.

    Raises:
        StoreError: The store has no current bundle.
    """
    if settings.store is not None:
        return current_bundle(settings.store)
    assert settings.bundle is not None
    return settings.bundle


def pointer_stamp(store: Path) -> tuple[int, int] | None:
    """Return the inode and modification time of the store's pointer, or None if it is missing."""
    try:
        stat = (store / CURRENT).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def folders_above(store: Path | None) -> list[Path]:
    """Return the folders above a store without the root, from the innermost to the outermost."""
    return [] if store is None else list(store.absolute().parents)[:-1]


def hide_paths(problem: str, *paths: Path | None) -> str:
    """Replace paths in an error message with their last part.

    Args:
        problem: The message.
        paths: The paths to replace, inner folders before the folders that contain them. None is skipped.
    """
    for path in paths:
        if path is not None:
            problem = problem.replace(str(path.resolve()), path.name).replace(str(path), path.name)
    return problem
