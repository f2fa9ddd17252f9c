"""The readers for Frappe (Frappe_x1): which app a person uses in which situation."""

from pathlib import Path

from contract.schema import Field, Side
from model.data.readers.log import Log
from model.data.readers.published import read_splits
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
FIELDS = tuple(Field(name, side) for name, side in SIDES.items())
PUBLISHED_X1 = "Frappe_x1 is published at huggingface.co/datasets/reczoo/Frappe_x1."
HINT = "Frappe may not be redistributed. The documentation describes where to get it and how to lay out the files."


def read(folder: Path, data: Data) -> Log:
    """Return the log in {train,valid,test}.parquet, in which values are words.

    Raises:
        ValueError: If a file or a column is missing.
    """
    return read_splits(folder, ["{}.parquet"], LABEL, FIELDS, data, HINT)


def read_x1(folder: Path, data: Data) -> Log:
    """Return the log in Frappe_x1's {train,valid,test}.csv or x1_ids_{train,valid,test}.csv.gz.

    The rows are the same, but the values are numbers. Each number belongs to one field.

    Raises:
        ValueError: If a file or a column is missing.
    """
    return read_splits(folder, ["{}.csv", "{}.csv.gz", "x1_ids_{}.csv.gz"], LABEL, FIELDS, data, PUBLISHED_X1)
