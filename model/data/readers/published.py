"""The files of a data set under the names that they are published with."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from model.data.readers.log import LINE, SPLITS, require_columns, scan_text


def scan_table(path: Path, columns: Sequence[str]) -> pl.LazyFrame:
    """The named columns of a comma-separated file with a header: strings, and LINE.

    Raises:
        ValueError: naming the file, and a column that it lacks, or a line with another number of columns.
    """
    frame = scan_text(path)
    require_columns(path, columns, (name for name in frame.collect_schema() if name != LINE))
    return frame.select(LINE, *columns)


def find(folder: Path, names: Sequence[str], way_out: str) -> Path:
    """The first of the names that is there.

    Raises:
        ValueError: naming them, when none is; `way_out` says where the data set is published.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
    raise ValueError(f"{folder / names[0]}: no such file{others}. {way_out}")


def find_splits(folder: Path, names: Sequence[str], way_out: str) -> dict[str, Path]:
    """Train, valid and test; "{}" in a name stands for the split."""
    return {split: find(folder, [name.format(split) for name in names], way_out) for split in SPLITS}
