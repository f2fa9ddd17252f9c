"""Frappe (Frappe_x1): which app somebody uses, and in which situation."""

from pathlib import Path

from contract.schema import Field, Side
from model.data.log import SPLITS, Log, check_label, read_parquet
from model.experiment import Data

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
WAY_OUT = "Frappe may not be passed on: the README says where it is published and how to lay it out"


def read(folder: Path, data: Data) -> Log:
    """Reads {train,valid,test}.parquet with the values in words.

    Raises:
        ValueError: naming the file, for a missing one, a missing column, or a label that is not 0 or 1.
    """
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        splits[split] = read_parquet(path, [LABEL, *SIDES], WAY_OUT)
        check_label(path, splits[split][LABEL])
    return Log(tuple(Field(name, side) for name, side in SIDES.items()), LABEL, splits)
