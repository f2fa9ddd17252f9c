"""Deleting a unit, such as a user, from request logs and joined logs."""

import os
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import polars as pl

from contract.request_log_reader import current_name
from contract.segments import REQUESTS, finished_files, unfinished_files
from model.atomic_folder import new_file
from model.data.readers.scan import JOINED_LOG
from model.loop.output import HOURS, Settings, locked
from model.loop.table import ROW_GROUP


class _Unit(msgspec.Struct):
    unit: str | None = None


_decode = msgspec.json.Decoder(_Unit).decode


@dataclass
class Deleted:
    """What was deleted.

    Attributes:
        lines: The number of lines of request logs.
        rows: The number of rows of joined logs.
        unreadable: Lines of request logs that cannot be read, and were kept.
        unfinished: Files of request logs that are still being written, and were not changed.
    """

    lines: int = 0
    rows: int = 0
    unreadable: int = 0
    unfinished: int = 0


def delete_unit(unit: str, folders: Iterable[Path]) -> Deleted:
    """Delete the lines and rows of a unit. Events have no unit: without the request log, they belong to nobody.

    Args:
        unit: The unit as it is in the logs. If the server has a key for pseudonyms, this is the pseudonym.
        folders: Request logs and joined logs.

    Raises:
        ValueError: If a folder is neither. The message names it.
    """
    deleted = Deleted()
    folders = list(folders)
    for folder in folders:
        if not ((folder / HOURS).is_dir() or finished_files(folder) or unfinished_files(folder)):
            raise ValueError(f"{folder} is neither a request log nor a joined log. Check the path.")
    for folder in folders:
        if (folder / HOURS).is_dir():
            with locked(folder):
                for path in sorted((folder / HOURS).glob("*.parquet")):
                    deleted.rows += delete_rows(unit, path)
            continue
        deleted.unfinished += sum(path.name.startswith(f"{REQUESTS}-") for path in unfinished_files(folder))
        for path in finished_files(folder):
            if path.name.startswith(f"{REQUESTS}-"):
                delete_lines(unit, path, deleted)
    return deleted


def delete_rows(unit: str, path: Path) -> int:
    """Delete a unit's rows from an hour of a joined log, and return their number."""
    stored = pl.read_parquet_metadata(path).get(JOINED_LOG)
    if stored is None:
        raise ValueError(f"{path} was not written by ctr-join, so the column with the units is not known.")
    column = msgspec.json.decode(stored, type=Settings).rename.get("unit", "unit")
    table = pl.read_parquet(path)
    kept = table.filter(pl.col(column).ne_missing(unit))
    if kept.height < table.height:
        with new_file(path) as new:
            kept.write_parquet(new, row_group_size=ROW_GROUP, metadata={JOINED_LOG: stored})
    return table.height - kept.height


def delete_lines(unit: str, listed: Path, deleted: Deleted) -> None:
    """Delete a unit's lines from a segment of a request log. Lines that cannot be read are kept.

    A segment that another process renames as shipped meanwhile is changed under its new name.
    """
    while (path := current_name(listed)) is not None:
        with suppress(FileNotFoundError), path.open("rb") as lines:
            belongs = [_is_of(unit, line) for line in lines]
            if any(belongs):  # Otherwise the file keeps its time, by which users delete old files.
                rewrite_without({place for place, is_of in enumerate(belongs) if is_of}, path, lines)
            deleted.lines += belongs.count(True)
            deleted.unreadable += belongs.count(None)
            return


def rewrite_without(places: Set[int], path: Path, lines: BinaryIO) -> None:
    """Replace a file by a copy without some of its lines.

    Args:
        places: The positions of the lines to leave out.
        path: The file.
        lines: The same file, opened.

    Raises:
        FileNotFoundError: The file is not at its path anymore.
    """
    with new_file(path) as new:
        new.touch(0o600)
        with new.open("wb") as kept:
            lines.seek(0)
            kept.writelines(line for place, line in enumerate(lines) if place not in places)
            kept.flush()
            os.fsync(kept.fileno())
        new.chmod(os.fstat(lines.fileno()).st_mode)
        if not os.path.samestat(path.stat(), os.fstat(lines.fileno())):
            raise FileNotFoundError(path)


def _is_of(unit: str, line: bytes) -> bool | None:
    """Return whether a line belongs to a unit, or None if it cannot be read."""
    try:
        return _decode(line).unit == unit
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
