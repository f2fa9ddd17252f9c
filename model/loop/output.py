"""The folder of a joined log. A file appears whole, and never changes after that."""

import fcntl
import filecmp
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from contract.segments import sync
from model.data.readers.scan import JOINED_LOG
from model.loop.match import hour_of
from model.loop.table import ROW_GROUP, concatenate

HOURS, LATE, REPORT, LOCK = "hours", "late", "join.json", ".lock"
FORMAT = 1
MAX_BUFFERED_ROWS = 25_000


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that all hours of a joined log share. Each file contains them.

    Attributes:
        format: The version of the files' format.
        window_s: How long after an impression its click may happen, in seconds.
        lateness_s: How long after the end of the window events may arrive, in seconds.
        rename: New names of columns (see table.Names).
    """

    format: int = FORMAT
    window_s: int
    lateness_s: int
    rename: dict[str, str] = {}


class _Header(msgspec.Struct):
    format: int = FORMAT


@dataclass
class Published:
    """The hours that were joined, such as "2026-11-30T20".

    Attributes:
        rows: The number of rows of each hour.
        written: The hours that are new.
        kept: The hours whose file has other rows than it would have now. The file was kept.
    """

    rows: dict[str, int] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


class TemporaryTables:
    """The rows of each hour, in temporary files. At most MAX_BUFFERED_ROWS are in memory."""

    def __init__(self, folder: Path, makers: Mapping[str, Callable[[list[Any]], pl.DataFrame]]) -> None:
        """Start without rows.

        Args:
            folder: The folder for the files.
            makers: Functions that convert the rows of one hour to a table, by kind: HOURS and LATE.
        """
        self._folder = folder
        self._makers = makers
        self._buffered: dict[tuple[str, int], list[Any]] = {}
        self._rows = 0
        self._files = 0

    def add(self, kind: str, time_ms: int, row: Any) -> None:
        """Add a row to the hour of a time."""
        self._buffered.setdefault((kind, hour_of(time_ms)), []).append(row)
        self._rows += 1
        if self._rows >= MAX_BUFFERED_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are in memory."""
        for (kind, hour_ms), rows in self._buffered.items():
            folder = self._folder / kind / hour_name(hour_ms)
            folder.mkdir(parents=True, exist_ok=True)
            self._makers[kind](rows).write_ipc(folder / f"{self._files:06d}")
            self._files += 1
        self._buffered.clear()
        self._rows = 0

    def hours(self, kind: str) -> Iterator[tuple[str, list[Path]]]:
        """Yield each hour that has rows, and its files."""
        for folder in sorted((self._folder / kind).glob("*")):
            yield folder.name, sorted(folder.iterdir())


class Output:
    """The folder of a joined log, while one process may write to it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._scratch = folder / ".scratch"
        shutil.rmtree(self._scratch, ignore_errors=True)  # a killed process left it behind
        self._scratch.mkdir()

    def temporary(self, name: str) -> Path:
        """Create and return a folder for temporary files."""
        folder = self._scratch / name
        folder.mkdir()
        return folder

    def publish(self, kind: str, tables: TemporaryTables, leading: Iterable[str], sort: Sequence[str]) -> Published:
        """Write the file of each hour that has rows, unless it exists.

        Args:
            kind: HOURS or LATE.
            tables: The rows.
            leading: The names of the first columns.
            sort: The columns to sort by. No two rows are equal in all of them, so the order is always the same.
        """
        (self._folder / kind).mkdir(exist_ok=True)
        published = Published()
        for hour, files in tables.hours(kind):
            table = concatenate(files, leading, sort)
            published.rows[hour] = table.height
            target = self._folder / kind / f"{hour}.parquet"
            new = self._scratch / "new.parquet"
            metadata = {JOINED_LOG: msgspec.json.encode(self._settings, order="sorted").decode()}
            table.write_parquet(new, row_group_size=ROW_GROUP, metadata=metadata)
            if not target.exists():
                move(new, target)
                published.written.append(hour)
            elif not filecmp.cmp(new, target, shallow=False) and not pl.read_parquet(target, glob=False).equals(table):
                published.kept.append(hour)
        sync(self._folder / kind)
        return published

    def write_report(self, report: Mapping[str, object]) -> None:
        """Write join.json, replacing that of the last join."""
        new = self._scratch / REPORT
        new.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        move(new, self._folder / REPORT)
        sync(self._folder)

    def close(self) -> None:
        """Remove the temporary files."""
        shutil.rmtree(self._scratch, ignore_errors=True)


@contextmanager
def open_output(folder: Path, settings: Settings) -> Iterator[Output]:
    """Yield a folder for a joined log, which is created if it does not exist.

    Raises:
        ValueError: If another process writes to it, it contains other files, or its hours have other settings.
    """
    if folder.exists() and not (folder / LOCK).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and was not written by ctr-join. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        check_settings(folder, settings)
        output = Output(folder, settings)
        try:
            yield output
        finally:
            output.close()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a joined log.

    Raises:
        ValueError: If another process is writing to it.
    """
    with (folder / LOCK).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process is writing to this folder. Run this again later.") from error
        yield


def check_settings(folder: Path, settings: Settings) -> None:
    """Check that the hours in a folder have the same settings.

    Raises:
        ValueError: If they differ. The message names the file and both settings.
    """
    for path in sorted((folder / HOURS).glob("*.parquet")):
        if (found := read_settings(path)) is not None and found != settings:
            raise ValueError(
                f"{path} was written with {describe_settings(found)}, not with {describe_settings(settings)}. Use the "
                "same settings, or another --out."
            )


def read_settings(path: Path) -> Settings | None:
    """Return the settings that the file of an hour contains.

    It contains none if another program wrote it, for example to delete the rows of a unit.

    Raises:
        ValueError: If the file is damaged, or another version of this software wrote it. The message names the file.
    """
    try:
        stored = pl.read_parquet_metadata(path).get(JOINED_LOG)
    except pl.exceptions.ComputeError as error:
        raise ValueError(f"{path} is damaged: {error}. Restore it, or delete it and run ctr-join again.") from error
    if stored is None:
        return None
    try:
        version = msgspec.json.decode(stored, type=_Header).format
        if version == FORMAT:
            return msgspec.json.decode(stored, type=Settings)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: its settings cannot be read ({error}). Choose another --out.") from error
    raise ValueError(f"{path} has format {version}; this version reads {FORMAT}. Upgrade it, or choose another --out.")


def describe_settings(settings: Settings) -> str:
    """Return settings as arguments of the command."""
    names = "".join(f" --rename {old}={new}" for old, new in sorted(settings.rename.items()))
    return f"--window {settings.window_s}s --lateness {settings.lateness_s}s{names}"


def hour_name(hour_ms: int) -> str:
    """Return the name of an hour, such as "2026-11-30T20"."""
    return datetime.fromtimestamp(hour_ms // 1000, UTC).strftime("%Y-%m-%dT%H")


def move(new: Path, target: Path) -> None:
    """Move a file to its final path, after its content is on the disk. Call sync() for the folder after that."""
    sync(new)
    new.rename(target)
