"""Avazu: ten days of mobile ads.

Context: the hour, the page or app with the ad's position on it, and the device. Candidate: C14 to C21, which are
anonymous; C15 and C16 hold the usual widths and heights of banners, so we take the group as the ad's. An experiment may
say otherwise, column by column: [[data.fields]] name = "C20", side = "context".
"""

from pathlib import Path

import polars as pl

from contract.schema import Field
from model.data.readers.log import LINE, Log, declared
from model.data.readers.published import find, find_splits, scan_table
from model.data.readers.split import split_by_day, split_by_row
from model.data_config import Data

LABEL = "click"
HOUR = "hour"  # YYMMDDHH
CONTEXT = (
    "C1",
    "banner_pos",
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
    "device_id",
    "device_ip",
    "device_model",
    "device_type",
    "device_conn_type",
)
CANDIDATE = ("C14", "C15", "C16", "C17", "C18", "C19", "C20", "C21")
PUBLISHED = "It is Kaggle's Avazu Click-Through Rate Prediction (2014)"

X1_LABEL = "label"
X1_COLUMNS = tuple(f"feat_{n}" for n in range(1, 23))
# Without id and click, Avazu has 22 columns, the last eight of them C14 to C21; we take the x1 files to keep the order.
X1_CANDIDATE = X1_COLUMNS[-len(CANDIDATE) :]
PUBLISHED_X1 = "Avazu_x1 is published at huggingface.co/datasets/reczoo/Avazu_x1"


def read(folder: Path, data: Data) -> Log:
    """Reads train.csv, train.csv.gz or train.gz as Avazu published it, and splits it.

    Of `hour` come hour_of_day (0 to 23), weekday (0 is Sunday, as in FuxiCTR) and is_weekend; the date itself and `id`
    are no features. split = "time": the last day is test, the day before it valid.

    Raises:
        ValueError: naming the file, for a missing one or a missing column; line and value, for an unreadable hour.
    """
    path = find(folder, ["train.csv", "train.csv.gz", "train.gz"], PUBLISHED)
    frame = scan_table(path, (LABEL, HOUR, *CONTEXT, *CANDIDATE))
    check_hours(path, frame)
    by_day = data.split == "time"
    parts = split_by_day(frame, _date(), path) if by_day else split_by_row(frame, data.split_seed)
    wanted = (LINE, LABEL, *_of_the_hour(), *CONTEXT, *CANDIDATE)
    splits = {split: part.with_columns(**_of_the_hour()).select(wanted) for split, part in parts.items()}
    return Log(declared(_fields(), data), LABEL, splits, dict.fromkeys(splits, path))


def read_x1(folder: Path, data: Data) -> Log:
    """Reads Avazu_x1's {train,valid,test}.csv: AFN's split, columns feat_1 to feat_22.

    Raises:
        ValueError: naming the file, for a missing one, or a missing column.
    """
    paths = find_splits(folder, ["{}.csv", "{}.csv.gz"], PUBLISHED_X1)
    splits = {split: scan_table(path, (X1_LABEL, *X1_COLUMNS)) for split, path in paths.items()}
    fields = [Field(name, "candidate" if name in X1_CANDIDATE else "context") for name in X1_COLUMNS]
    return Log(declared(fields, data), X1_LABEL, splits, paths)


def check_hours(path: Path, frame: pl.LazyFrame) -> None:
    """Raises ValueError, with line and value, for the first hour that is not YYMMDDHH."""
    readable = pl.col(HOUR).str.contains("^[0-9]{8}$") & _date().is_not_null() & _hour_of_day().is_between(0, 23)
    wrong = frame.filter(~readable.fill_null(False)).select(LINE, HOUR).head(1).collect(engine="streaming")
    for line, value in wrong.iter_rows():
        raise ValueError(f"{path}: line {line}: hour {value!r} is not YYMMDDHH: correct or remove the line")


def _fields() -> list[Field]:
    context = ("hour_of_day", *CONTEXT)
    fields = [Field(name, "context") for name in context] + [Field(name, "candidate") for name in CANDIDATE]
    return [*fields, Field("weekday", "context"), Field("is_weekend", "context")]


def _of_the_hour() -> dict[str, pl.Expr]:
    weekday = _date().dt.weekday() % 7
    return {"hour_of_day": _hour_of_day(), "weekday": weekday, "is_weekend": weekday.is_in([0, 6])}


def _date() -> pl.Expr:
    return pl.col(HOUR).str.slice(0, 6).str.to_date("%y%m%d", strict=False)


def _hour_of_day() -> pl.Expr:
    return pl.col(HOUR).str.slice(6).cast(pl.Int8, strict=False)
