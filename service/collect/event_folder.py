"""The folder of the events. A group of events is stored when it has been written and fsynced.

The folder contains the segments (contract/segments.py), and a subfolder `invalid` with invalid entries of the Redis
stream. Everything here blocks, so it runs in one thread of service/collect/group_commit.py.
"""

import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from contract.segments import EVENTS
from service.collect.errors import StorageFull
from service.collect.metrics import CollectMetrics
from service.collect.settings import CollectSettings
from service.segments import Segments, remove_oldest
from service.settings import COLLECT_PREFIX

log = logging.getLogger(__name__)

INVALID = "invalid"  # the name of the subfolder, and the kind of its segments
MAX_INVALID_BYTES = 64 * 1024 * 1024  # Beyond this, the oldest files in the subfolder are deleted.
PROBE_BYTES = 4096
PROBE = ".probe-"
MAX_MEASURE_SHARE = 0.02  # of the time. A folder with very many files is measured less often than every second.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class EventFolder:
    """Stores events. Use it from one thread at a time.

    Attributes:
        problem: Why events cannot be stored, or None.
    """

    def __init__(
        self, settings: CollectSettings, metrics: CollectMetrics, clock: Callable[[], float] = time.time
    ) -> None:
        """Create the folder, and finish the files that dead processes left behind.

        Raises:
            SettingsError: The folder is not writable.
        """
        assert settings.folder is not None, "the settings check this"
        self._folder = settings.folder
        self._max_bytes = settings.max_bytes
        self._metrics = metrics
        setting = f"{COLLECT_PREFIX}FOLDER"
        self._events = Segments(settings.folder, settings.max_bytes, clock, EVENTS, setting, settings.segment_s)
        self._invalid = Segments(
            settings.folder / INVALID, MAX_INVALID_BYTES, clock, INVALID, setting, settings.segment_s
        )
        self._bytes = 0
        self._needed_bytes = PROBE_BYTES  # The size of the last write that failed.
        self._was_used = False
        self._next_measure_s = 0.0
        self.problem: str | None = None
        metrics.max_bytes.set(settings.max_bytes)
        for left in settings.folder.glob(f"{PROBE}*"):  # by a process that was killed
            left.unlink(missing_ok=True)
        self.check()

    def store(self, lines: bytes, invalid: bytes = b"") -> None:
        """Write lines, and return when they are on the disk.

        Args:
            lines: Events.
            invalid: Entries of the Redis stream that are invalid.

        Raises:
            StorageFull: The lines do not count as stored, although some of them may be on the disk.
        """
        try:
            self._check_room(len(lines) + len(invalid))
            # Invalid entries come first: if they cannot be stored, the reader of the stream tries again with the same
            # events, which must not fill the disk. The size of the other subfolder is limited.
            for segments, data in ((self._invalid, invalid), (self._events, lines)):
                if data:
                    segments.write(data)
                    start_s = time.perf_counter()
                    segments.sync()
                    self._metrics.fsync.observe(time.perf_counter() - start_s)
        except OSError as error:
            self._needed_bytes = max(PROBE_BYTES, len(lines) + len(invalid))
            self._metrics.failures.inc()
            self._set_problem(error)
            raise StorageFull(f"{self.problem} Send the events again later.") from error
        self._bytes += len(lines) + len(invalid)
        self._metrics.bytes.inc(len(lines))
        self._was_used = True
        self._set_problem(None)

    def check(self) -> None:
        """Finish old files, measure the folder, and find out whether events can be stored. Call this every second."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)  # It may have been removed.
            self._events.close_if_old()
            self._invalid.close_if_old()
            self._measure()
            if self.problem is not None or not self._was_used:
                self._check_room(self._needed_bytes)
                self._probe()
        except OSError as error:
            self._set_problem(error)
        else:
            self._needed_bytes = PROBE_BYTES
            self._set_problem(None)
        self._was_used = False

    def close(self) -> None:
        """Finish the files. If that fails, the next process that uses the folder finishes them."""
        for segments in (self._events, self._invalid):
            try:
                segments.close()
            except OSError as error:
                log.warning("A file was not finished: %s. The next start will finish it.", error.strerror)

    def _measure(self) -> None:
        """Update the size of the folder, and remove shipped files if it is full."""
        start_s = time.monotonic()
        if start_s < self._next_measure_s:
            return
        self._bytes = folder_bytes(self._folder)
        if self._bytes + self._needed_bytes > self._max_bytes:
            remove_oldest(self._folder, EVENTS, self._max_bytes - self._needed_bytes)
            self._bytes = folder_bytes(self._folder)
        self._metrics.folder_bytes.set(self._bytes)
        status = os.statvfs(self._folder)
        self._metrics.free_bytes.set(status.f_bavail * status.f_frsize)
        now_s = time.monotonic()
        self._next_measure_s = now_s + (now_s - start_s) / MAX_MEASURE_SHARE

    def _check_room(self, size: int) -> None:
        if self._bytes + size > self._max_bytes:
            raise OSError(errno.EDQUOT, f"the folder has reached {COLLECT_PREFIX}MAX_BYTES={self._max_bytes}")

    def _probe(self) -> None:
        """Write and delete a file, because a disk can be full or read-only while no events arrive."""
        path = self._folder / f"{PROBE}{os.getpid()}"
        try:
            with path.open("wb", buffering=0) as file:
                rest = memoryview(bytes(self._needed_bytes))
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)

    def _set_problem(self, error: OSError | None) -> None:
        self._metrics.writable.set(error is None)
        if error is None:
            if self.problem is not None:
                log.info("Events can be stored again")
            self.problem = None
            return
        kind = "full" if error.errno in FULL else "not writable"
        if self.problem is None:
            log.error(
                "Events cannot be stored in %s: %s. Ship finished files, enlarge the disk, or raise %sMAX_BYTES.",
                self._folder,
                error.strerror,
                COLLECT_PREFIX,
            )
        self.problem = f"The storage of this server is {kind}."


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files in the folder and in its subfolder."""
    total = 0
    for parent in (folder, folder / INVALID):
        with suppress(FileNotFoundError), os.scandir(parent) as entries:  # The folder may have been removed.
            for entry in entries:
                with suppress(FileNotFoundError):  # Another process may be renaming or removing files.
                    total += entry.stat().st_size if entry.is_file() else 0
    return total
