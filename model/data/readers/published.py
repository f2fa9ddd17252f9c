"""Finding and scanning the files of a published data set."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from model.data.readers.log import LINE, SPLITS, require_columns, scan_text


def scan_table(path: Path, columns: Sequence[str]) -> pl.LazyFrame:
    """Return the given columns of a comma-separated file with a header as strings, with LINE.

    Raises:
        ValueError: If a column is missing, or a line has too few or too many columns.
    """
    frame = scan_text(path)
    require_columns(path, columns, (name for name in frame.collect_schema() if name != LINE))
    return frame.select(LINE, *columns)


def find(folder: Path, names: Sequence[str], hint: str) -> Path:
    """Return the first of these files that exists.

    Args:
        folder: The folder of the data set.
        names: The possible names of the file.
        hint: Where the data set is published, for the error.

    Raises:
        ValueError: If none of them exists.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
    raise ValueError(f"{folder / names[0]}: no such file{others}. {hint}")


def find_splits(folder: Path, names: Sequence[str], hint: str) -> dict[str, Path]:
    """Return the files of the three splits (see find()). "{}" in a name stands for the split."""
    return {split: find(folder, [name.format(split) for name in names], hint) for split in SPLITS}
