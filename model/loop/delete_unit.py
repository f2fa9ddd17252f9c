"""Deleting a unit, such as a user, from request logs and joined logs."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl

from contract.segments import REQUESTS, finished_files, unfinished_files
from model.atomic_folder import new_file
from model.data.readers.scan import JOINED_LOG
from model.loop.output import HOURS, Settings, locked
from model.loop.table import ROW_GROUP


class _Unit(msgspec.Struct):
    unit: str | None = None


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


def delete_lines(unit: str, path: Path, deleted: Deleted) -> None:
    """Delete a unit's lines from a segment of a request log. Lines that cannot be read are kept."""
    decode = msgspec.json.Decoder(_Unit).decode
    found = 0
    with new_file(path) as new:
        with path.open("rb") as lines, new.open("wb") as kept:
            for line in lines:
                try:
                    is_found = decode(line).unit == unit
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    is_found = False
                    deleted.unreadable += 1
                found += is_found
                if not is_found:
                    kept.write(line)
        new.chmod(path.stat().st_mode)
    deleted.lines += found
