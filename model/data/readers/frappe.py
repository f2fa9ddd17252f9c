"""Frappe (Frappe_x1): which app somebody uses, and in which situation."""

from pathlib import Path

from contract.schema import Field, Side
from model.data.readers.log import SPLITS, Log, declared, scan_parquet
from model.data.readers.published import find_splits, scan_table
from model.data_config import Data

LABEL = "label"
# In FuxiCTR's order, so that results can be compared column by column.
SIDES: dict[str, Side] = {
    "user": "context",
    "item": "candidate",
    "daytime": "context",
    "weekday": "context",
    "isweekend": "context",
    "homework": "context",
    "cost": "candidate",
    "weather": "context",
    "country": "context",
    "city": "context",
}
PUBLISHED_X1 = "Frappe_x1 is published at huggingface.co/datasets/reczoo/Frappe_x1"
WAY_OUT = "Frappe may not be passed on: the README says where it is published and how to lay it out"


def read(folder: Path, data: Data) -> Log:
    """Reads {train,valid,test}.parquet with the values in words.

    Raises:
        ValueError: naming the file, for a missing one, or a missing column.
    """
    paths = {split: folder / f"{split}.parquet" for split in SPLITS}
    splits = {split: scan_parquet(path, [LABEL, *SIDES], WAY_OUT) for split, path in paths.items()}
    return Log(_fields(data), LABEL, splits, paths)


def read_x1(folder: Path, data: Data) -> Log:
    """Reads Frappe_x1's {train,valid,test}.csv, or x1_ids_{train,valid,test}.csv.gz: the same rows as numbers, of which
    each belongs to one field.

    Raises:
        ValueError: naming the file, for a missing one, or a missing column.
    """
    paths = find_splits(folder, ["{}.csv", "{}.csv.gz", "x1_ids_{}.csv.gz"], PUBLISHED_X1)
    splits = {split: scan_table(path, (LABEL, *SIDES)) for split, path in paths.items()}
    return Log(_fields(data), LABEL, splits, paths)


def _fields(data: Data) -> tuple[Field, ...]:
    return declared([Field(name, side) for name, side in SIDES.items()], data)
