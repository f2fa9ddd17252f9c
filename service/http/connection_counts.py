"""The number of open connections of each worker, in memory that all workers share.

The kernel wakes the processes that wait on a listening socket in the same order every time. Clients that connect one
after another would all reach the same worker, and the other cores would stay idle for as long as those connections
are open. A worker that has more connections than another worker therefore yields new connections to it.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path

from service.telemetry.metrics_folder import reserve

FILE = "connections"
COUNT_BYTES = 8
UNUSED = -1


class ConnectionCounts:
    """A memory-mapped file with one signed 64-bit count per worker slot.

    Each worker writes the count to its own slot. The supervisor clears the slot of a worker that has exited.
    """

    def __init__(self, folder: Path, slots: int | None = None) -> None:
        """Map the file.

        Args:
            folder: The folder that all processes of the server share.
            slots: Create the file with this many unused slots. If it is None, open the file that another process
                created.
        """
        path = folder / FILE
        if slots is not None:
            reserve(path, COUNT_BYTES * slots)
        with path.open("r+b") as file:
            self._counts = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        for slot in range(slots or 0):
            self.clear(slot)

    def set(self, slot: int, connections: int) -> None:
        self._counts[slot] = connections

    def clear(self, slot: int) -> None:
        self._counts[slot] = UNUSED

    def min_of_others(self, slot: int) -> int | None:
        """Return the lowest count of the other workers, or None if there is no other worker."""
        others = [count for other, count in enumerate(self._counts) if other != slot and count != UNUSED]
        return min(others, default=None)


@dataclass(frozen=True)
class WorkerSlot:
    """One worker's slot in ConnectionCounts."""

    counts: ConnectionCounts
    index: int

    def set(self, connections: int) -> None:
        self.counts.set(self.index, connections)

    def clear(self) -> None:
        self.counts.clear(self.index)

    def exceeds_another(self, connections: int) -> bool:
        """Return whether any other worker has fewer connections than this."""
        fewest = self.counts.min_of_others(self.index)
        return fewest is not None and connections > fewest
