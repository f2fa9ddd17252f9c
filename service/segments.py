"""Write lines to a folder, as files of limited size and age. contract/segments.py describes their names.

Several processes may write to the same folder, because each locks the file that it writes.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from contract.segments import EVENTS, FINISHED, SHIPPED, UNFINISHED, finished_name, is_at, sync
from contract.system_errors import explain_denied
from service.settings import SettingsError

MAX_SEGMENT_BYTES = 64 * 1024 * 1024
MAX_SEGMENT_S = 300.0


class Segments:
    """The files of one writer. Every method may raise OSError, and can be called again after that."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        clock: Callable[[], float],
        kind: str,
        setting: str,
        max_age_s: float = MAX_SEGMENT_S,
        on_unshipped: Callable[[Path], None] | None = None,
    ) -> None:
        """Create the folder, and finish the files that dead processes left behind.

        Args:
            folder: The folder for the files.
            max_bytes: Maximum total size of the files in the folder. The file being written may exceed it.
            clock: Returns seconds since the epoch.
            kind: What the files contain: REQUESTS or EVENTS. Their names begin with it.
            setting: The name of the setting that contains the folder, for error messages.
            max_age_s: How long to write to a file before finishing it.
            on_unshipped: Called after a file that was not shipped has been deleted to make room.

        Raises:
            SettingsError: The folder is not writable.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        self._kind = kind
        self._file: FileIO | None = None
        self._path = folder
        self._max_age_s = max_age_s
        self._size = 0
        self._synced_size = 0
        self._opened_s = 0.0
        self._on_unshipped = on_unshipped
        try:
            prepare_folder(folder, kind)
        except PermissionError as error:
            raise SettingsError(f"{setting}: {explain_denied(Path(error.filename or folder), secret=True)}") from error
        except OSError as error:
            raise SettingsError(
                f"{setting}: {folder} is not writable ({error.strerror}). Set it to a writable folder."
            ) from error

    def write(self, line: bytes) -> None:
        """Append one or more lines. If the disk is full, remove them, because a partial line would corrupt the next.

        The lines survive a power failure only after sync().
        """
        if self._file is not None and not is_at(self._path, self._file):
            self.close()
        if self._file is None:
            self._open()
        assert self._file is not None
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise
        self._size += len(line)
        if self._size >= min(MAX_SEGMENT_BYTES, self._max_bytes // 4):
            self.close()
        else:
            self.close_if_old()

    def sync(self) -> None:
        """Wait until everything that was written is on the disk. If that fails, remove what was written since then.

        After a failure, the system may have discarded the data, and a second fsync would not report that.
        """
        if self._file is None or self.is_synced:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._synced_size)
            self._size = self._synced_size
            self._file.seek(self._size)
            raise
        if self._synced_size == 0:
            sync(self._folder)
        self._synced_size = self._size

    @property
    def is_synced(self) -> bool:
        """Whether everything that was written is on the disk."""
        # If write() has finished the file, close() has synced it.
        return self._file is None or self._synced_size == self._size

    def close_if_old(self) -> None:
        """Finish the current file if it has been open for a long time, even if nothing is being written.

        If the clock has been set back, how long the file has been open is unknown, so it is finished too.
        """
        if self._file is not None and not 0 <= self._clock() - self._opened_s < self._max_age_s:
            self.close()

    def close(self) -> None:
        """Finish the current file. If the folder is full, remove shipped files, and then the oldest requests."""
        if self._file is None:
            return
        file, self._file = self._file, None
        was_moved = not is_at(self._path, file)
        try:
            os.fsync(file.fileno())
            if not was_moved:
                finish(self._path)  # while the file is locked, so that no other process finishes it
        finally:
            file.close()
        for path in remove_oldest(self._folder, self._kind, self._max_bytes):
            if self._on_unshipped is not None:
                self._on_unshipped(path)

    def _open(self) -> None:
        prepare_folder(self._folder, self._kind)  # the folder may have been removed
        self._opened_s = self._clock()
        moment = datetime.fromtimestamp(self._opened_s, UTC).strftime("%Y%m%dT%H%M%S.%f")
        self._path = self._folder / f"{self._kind}-{moment}-{os.getpid()}{UNFINISHED}"
        unnamed = self._path.with_suffix(".new")
        self._file = unnamed.open("xb", buffering=0)
        os.fchmod(self._file.fileno(), 0o600)
        # Lock the file before it gets the name that prepare_folder() looks for. Closing the file releases the lock.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        unnamed.rename(self._path)
        self._size = self._synced_size = 0


def finish(path: Path) -> None:
    """Rename a file to show that it is complete."""
    path.rename(finished_name(path))
    sync(path.parent)


def prepare_folder(folder: Path, kind: str) -> None:
    """Create the folder. Finish the files in it that no process is writing, and remove their truncated last lines.

    Such files were left behind by processes that died, or could not be renamed because the disk was full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{kind}-*{UNFINISHED}"):
        # A running process has locked its file. Another process may finish the same file first.
        with suppress(BlockingIOError, FileNotFoundError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(file.read().rfind(b"\n") + 1)
            os.fsync(file.fileno())
            finish(path)


def remove_oldest(folder: Path, kind: str, max_bytes: int) -> list[Path]:
    """Remove complete files, of any process, until all files together have at most `max_bytes`.

    Shipped files are removed first, because there is a copy of them. Within both groups, the oldest are removed first.
    Events that were not shipped are never removed, because nothing else has them.

    Returns:
        The removed files that were not shipped.
    """
    sizes: dict[Path, int] = {}
    for path in folder.glob(f"{kind}-*"):
        with suppress(FileNotFoundError):  # another process may be removing or renaming files too
            sizes[path] = path.stat().st_size
    total, unshipped = sum(sizes.values()), []
    removable = SHIPPED if kind == EVENTS else (FINISHED, SHIPPED)
    complete = [path for path in sizes if path.name.endswith(removable)]
    for path in sorted(complete, key=lambda path: (not path.name.endswith(SHIPPED), path.name)):
        if total <= max_bytes:
            break
        total -= sizes[path]
        with suppress(FileNotFoundError):
            path.unlink()
            if not path.name.endswith(SHIPPED):
                unshipped.append(path)
    return unshipped
