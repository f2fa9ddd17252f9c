"""The reader for Avazu: ten days of mobile ads.

The context consists of the hour, the page or app with the ad's position on it, and the device. The candidate consists
of C14 to C21. Their meaning is not published, but C15 and C16 contain common widths and heights of banners, so we
assign this group to the ad. An experiment can change the side of each column, for example with [[data.fields]]
name = "C20", side = "context".
"""

from pathlib import Path

import polars as pl

from contract.schema import Field
from model.data.readers.log import FILE, LINE, Log, apply_field_specs, position
from model.data.readers.published import find, read_splits
from model.data.readers.scan import join_parts, log_files, open_text
from model.data.readers.split import split_by_day, split_by_row
from model.data.readers.text import TextFormat
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
PUBLISHED = "The file is from Kaggle's Avazu Click-Through Rate Prediction (2014)."

DATE = pl.col(HOUR).str.slice(0, 6).str.to_date("%y%m%d", strict=False)
HOUR_OF_DAY = pl.col(HOUR).str.slice(6).cast(pl.Int8, strict=False)
WEEKDAY = DATE.dt.weekday() % 7  # 0 is Sunday, as in FuxiCTR

X1_LABEL = "label"
X1_COLUMNS = tuple(f"feat_{n}" for n in range(1, 23))
# Apart from id and click, Avazu has 22 columns, of which the last eight are C14 to C21. We assume that x1 keeps this
# order.
X1_CANDIDATE = X1_COLUMNS[-len(CANDIDATE) :]
PUBLISHED_X1 = "Avazu_x1 is published at huggingface.co/datasets/reczoo/Avazu_x1."


def read(folder: Path, data: Data) -> Log:
    """Return the log in train.csv, train.csv.gz or train.gz as published by Avazu, split into train, valid and test.

    `hour` becomes hour_of_day (0 to 23), weekday (0 is Sunday) and is_weekend. The date and `id` are not features. With
    split = "time", the last day is the test set and the day before it is the validation set.

    Raises:
        ValueError: If the file or a column is missing, or an hour cannot be read.
    """
    fields = [
        *(Field(name, "context") for name in ("hour_of_day", *CONTEXT)),
        *(Field(name, "candidate") for name in CANDIDATE),
        Field("weekday", "context"),
        Field("is_weekend", "context"),
    ]
    changed = apply_field_specs(fields, data)
    source = find(folder, ["train.csv", "train.csv.gz", "train.gz"], PUBLISHED)
    part = open_text(source, TextFormat())
    frame = join_parts([part], (LABEL, HOUR, *CONTEXT, *CANDIDATE))
    check_hours(source.name, frame)
    rows = split_by_day(frame, DATE, source.path) if data.split == "time" else split_by_row(frame, data.split_seed)
    time = {"hour_of_day": HOUR_OF_DAY, "weekday": WEEKDAY, "is_weekend": WEEKDAY.is_in([0, 6])}
    columns = (FILE, LINE, LABEL, *time, *CONTEXT, *CANDIDATE)
    splits = {split: frame.with_columns(**time).select(columns) for split, frame in rows.items()}
    return Log(changed, LABEL, splits, dict.fromkeys(splits, source.name), log_files([part]))


def read_x1(folder: Path, data: Data) -> Log:
    """Return the log in Avazu_x1's {train,valid,test}.csv, which has AFN's split and columns feat_1 to feat_22.

    Raises:
        ValueError: If a file or a column is missing.
    """
    fields = [Field(name, "candidate" if name in X1_CANDIDATE else "context") for name in X1_COLUMNS]
    return read_splits(folder, ["{}.csv", "{}.csv.gz"], X1_LABEL, fields, data, PUBLISHED_X1)


def check_hours(name: str, frame: pl.LazyFrame) -> None:
    """Check that every hour is a valid YYMMDDHH.

    Raises:
        ValueError: If an hour is not valid. The message names the line and the value.
    """
    readable = pl.col(HOUR).str.contains("^[0-9]{8}$") & DATE.is_not_null() & HOUR_OF_DAY.is_between(0, 23)
    wrong = frame.filter(~readable.fill_null(False)).select(LINE, HOUR).head(1).collect(engine="streaming")
    for line, value in wrong.iter_rows():
        raise ValueError(f'{position(name, line)}: hour "{value}" is not YYMMDDHH. Fix or remove the line.')
