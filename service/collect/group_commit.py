"""Group commit: one fsync for all requests that have arrived while the previous fsync was running."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from service.collect.event_folder import EventFolder
from service.collect.metrics import CollectMetrics

CHECK_S = 1.0


@dataclass(frozen=True)
class Waiting:
    """Lines that are not on the disk yet, and the future of the caller that waits for them."""

    lines: bytes
    invalid: bytes
    stored: "asyncio.Future[None]"


class GroupCommit:
    """Stores events in a thread, so that the event loop never waits for the disk."""

    def __init__(self, folder: EventFolder, metrics: CollectMetrics) -> None:
        self._folder = folder
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._waiting: list[Waiting] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, lines: bytes, invalid: bytes = b"") -> None:
        """Return when the lines are on the disk. See EventFolder.store().

        Raises:
            StorageFull: The lines were not stored.
        """
        loop = asyncio.get_running_loop()
        waiting = Waiting(lines, invalid, loop.create_future())
        self._waiting.append(waiting)
        if self._storing is None or self._storing.done():
            self._storing = loop.create_task(self._store_groups())
        await waiting.stored

    async def check_regularly(self) -> None:
        """Call EventFolder.check() every second."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_S)
            await loop.run_in_executor(self._thread, self._folder.check)

    async def close(self) -> None:
        """Store what is waiting, and finish the files."""
        while self._storing is not None and not self._storing.done():
            await asyncio.wait([self._storing])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._folder.close)
        self._thread.shutdown()

    async def _store_groups(self) -> None:
        """Store one group after the other, until nothing is waiting."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            self._metrics.group_requests.observe(len(group))
            lines = b"".join(waiting.lines for waiting in group)
            invalid = b"".join(waiting.invalid for waiting in group)
            failure: Exception | None = None
            try:
                await loop.run_in_executor(self._thread, self._folder.store, lines, invalid)
            except Exception as error:  # The requests of the group report it.
                failure = error
            for waiting in group:
                if waiting.stored.done():  # The client has disconnected.
                    continue
                if failure is None:
                    waiting.stored.set_result(None)
                else:
                    waiting.stored.set_exception(failure)
