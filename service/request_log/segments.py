"""Files of lines in one folder: each appears whole, and the oldest go when there are too many bytes of them.

Several processes may write there; a file belongs to the one that has it locked.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from service.settings import SettingsError

SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENT_S = 300.0
PART, WHOLE = ".ndjson.part", ".ndjson"


class Segments:
    """One writer's. Its methods raise OSError, and can be called again."""

    def __init__(self, folder: Path, max_bytes: int, clock: Callable[[], float]) -> None:
        """Raises SettingsError when the folder cannot be used."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock
        self._file: FileIO | None = None
        self._path = folder
        self._size = 0
        self._opened_s = 0.0
        try:
            self._make_folder()
        except OSError as error:
            raise SettingsError(f"CTR_REQUEST_LOG: {folder} cannot be written ({error.strerror})") from error

    def write(self, line: bytes) -> None:
        """All of it, or nothing and an OSError: what a full disk cut off would spoil the next line."""
        if self._file is not None and self._is_elsewhere(self._file):
            self.close()
        if self._file is None:
            self._open()
        assert self._file is not None
        try:
            _write_all(self._file, line)
        except OSError:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise
        self._size += len(line)
        if self._size >= min(SEGMENT_BYTES, self._max_bytes // 4):
            self.close()
        else:
            self.turn_if_old()

    def turn_if_old(self) -> None:
        if self._file is not None and self._clock() - self._opened_s >= SEGMENT_S:
            self.close()

    def close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        is_elsewhere = self._is_elsewhere(file)
        try:
            os.fsync(file.fileno())
        finally:
            file.close()
        if not is_elsewhere:
            self._path.rename(self._path.with_name(self._path.name.removesuffix(PART) + WHOLE))
        _make_room(self._folder, self._max_bytes)

    def _is_elsewhere(self, file: FileIO) -> bool:
        """Somebody removed it, or moved its folder: its name is not this class's to change any more."""
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except OSError:
            return True

    def _make_folder(self) -> None:
        """Somebody may have removed it. What a dead process or a full disk kept from its name gets it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _recover(self._folder)

    def _open(self) -> None:
        self._make_folder()
        self._opened_s = self._clock()
        moment = datetime.fromtimestamp(self._opened_s, UTC).strftime("%Y%m%dT%H%M%S.%f")
        self._path = self._folder / f"requests-{moment}-{os.getpid()}{PART}"
        aside = self._path.with_suffix(".new")
        self._file = aside.open("xb", buffering=0)
        os.fchmod(self._file.fileno(), 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # as long as it is written, and before it has its name: see _recover
        aside.rename(self._path)
        self._size = 0


def _write_all(file: FileIO, line: bytes) -> None:
    left = memoryview(line)
    while left:
        left = left[file.write(left) :]


def _recover(folder: Path) -> None:
    """What a process left that died: without the line that it was about to write. Whoever lives has it locked."""
    for path in folder.glob(f"requests-*{PART}"):
        with suppress(BlockingIOError, FileNotFoundError), path.open("r+b") as file:  # another one may be quicker
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(file.read().rfind(b"\n") + 1)
            path.rename(path.with_name(path.name.removesuffix(PART) + WHOLE))


def _make_room(folder: Path, max_bytes: int) -> None:
    """The oldest whole files go, whichever process wrote them; their names begin with their time."""
    sizes: dict[Path, int] = {}
    for path in folder.glob("requests-*"):
        with suppress(FileNotFoundError):  # another process makes room as well
            sizes[path] = path.stat().st_size
    for oldest in sorted(path for path in sizes if path.name.endswith(WHOLE)):
        if sum(sizes.values()) <= max_bytes:
            return
        oldest.unlink(missing_ok=True)
        del sizes[oldest]


def unfinished_files(folder: Path) -> list[Path]:
    """That a process writes, or left when it died."""
    return sorted(folder.glob(f"*{PART}"))


def whole_files(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted(folder.glob(f"*{WHOLE}"))
