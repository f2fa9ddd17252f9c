"""Delete a unit, such as a user, from request logs and joined logs."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import polars as pl

from contract.request_log_deletion import DeletedLines, delete_lines
from contract.segments import finished_files, sync, unfinished_files
from model.atomic_folder import new_file
from model.data.readers.scan import JOINED_LOG
from model.loop.output import HOURS, Settings, locked
from model.loop.table import ROW_GROUP


def delete_unit(unit: str, folders: Sequence[Path]) -> tuple[DeletedLines, int]:
    """Delete the lines and rows of a unit. Events have no unit: without the request log, they belong to nobody.

    Args:
        unit: The unit as it is in the logs. If the server has a key for pseudonyms, this is the pseudonym.
        folders: Request logs and joined logs.

    Returns:
        The deleted lines of request logs, and the number of deleted rows of joined logs.

    Raises:
        ValueError: If a folder is neither. The message names it.
    """
    joined = [folder for folder in folders if (folder / HOURS).is_dir()]
    logs = [folder for folder in folders if folder not in joined]
    for folder in logs:
        if not finished_files(folder) and not unfinished_files(folder):
            raise ValueError(f"{folder} is neither a request log nor a joined log. Check the path.")
    rows = 0
    for folder in joined:
        with locked(folder):
            rows += sum(delete_rows(unit, path) for path in sorted((folder / HOURS).glob("*.parquet")))
    return delete_lines(unit, logs), rows


def delete_rows(unit: str, path: Path) -> int:
    """Delete a unit's rows from an hour of a joined log, and return their number."""
    stored = pl.read_parquet_metadata(path).get(JOINED_LOG)
    if stored is None:
        raise ValueError(f"{path} was not written by ctr-join, so the column with the units is not known.")
    column = msgspec.json.decode(stored, type=Settings).rename.get("unit", "unit")
    table = pl.read_parquet(path, glob=False)
    kept = table.filter(pl.col(column).ne_missing(unit))
    if kept.height < table.height:
        with new_file(path) as new:
            kept.write_parquet(new, row_group_size=ROW_GROUP, metadata={JOINED_LOG: stored})
            sync(new)
    return table.height - kept.height
