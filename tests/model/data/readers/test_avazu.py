"""The Avazu readers, tested with synthetic rows in Avazu's file formats."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from model.data.readers import avazu
from model.data.readers.log import FILE, LINE, SPLITS
from model.data_config import Data, FieldSpec

RAW = Data(reader="avazu", folder=".", prepared="p")
BY_TIME = Data(reader="avazu", folder=".", prepared="p", split="time")
X1 = Data(reader="avazu_x1", folder=".", prepared="p")
HEADER = ("id", "click", "hour", *avazu.CONTEXT, *avazu.CANDIDATE)


def write_raw(path: Path, hours: list[str]) -> None:
    lines = [",".join(HEADER)]
    for row, hour in enumerate(hours):
        values = [f"{row}{column}" for column in (*avazu.CONTEXT, *avazu.CANDIDATE)]
        lines.append(",".join([str(10**18 + row), str(row % 2), hour, *values]))
    text = "\n".join(lines).encode() + b"\n"
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def rows_of(splits: dict[str, pl.LazyFrame]) -> pl.DataFrame:
    return pl.concat([part.collect(engine="streaming") for part in splits.values()]).sort(LINE)


def test_the_hour_becomes_hour_of_day_weekday_and_weekend(tmp_path: Path) -> None:
    # These are a Tuesday, a Saturday, a Sunday and a Monday.
    write_raw(tmp_path / "train.csv", ["14102100", "14102509", "14102623", "14102712"])
    rows = rows_of(dict(avazu.read(tmp_path, RAW).splits))
    assert rows["hour_of_day"].to_list() == [0, 9, 23, 12]
    assert rows["weekday"].to_list() == [2, 6, 0, 1]
    assert rows["is_weekend"].to_list() == [False, True, True, False]


def test_every_column_except_id_and_date_is_a_feature(tmp_path: Path) -> None:
    write_raw(tmp_path / "train.csv", ["14102100"] * 3)
    log = avazu.read(tmp_path, RAW)
    names = [field.name for field in log.fields]
    assert set(names) == {*HEADER, "hour_of_day", "weekday", "is_weekend"} - {"id", "click", "hour"}
    assert [f.name for f in log.fields if f.side == "candidate"] == [f"C{n}" for n in range(14, 22)]
    assert set(rows_of(dict(log.splits)).columns) == {FILE, LINE, "click", *names}


def test_a_split_by_time_uses_the_last_day_as_test(tmp_path: Path) -> None:
    write_raw(tmp_path / "train.csv", ["14102300", "14102101", "14102223", "14102202", "14102323", "14102003"])
    splits = avazu.read(tmp_path, BY_TIME).splits
    lines = {split: splits[split].collect()[LINE].to_list() for split in SPLITS}
    assert lines == {"train": [3, 7], "valid": [4, 5], "test": [2, 6]}


@pytest.mark.parametrize("name", ["train.csv.gz", "train.gz"])
def test_a_compressed_file_gives_the_same_rows_as_the_plain_one(tmp_path: Path, name: str) -> None:
    for file in ("train.csv", name):
        write_raw(tmp_path / file, ["14102100", "14102509", "14102623"] * 20)
    plain = rows_of(dict(avazu.read(tmp_path, RAW).splits))
    (tmp_path / "train.csv").unlink()
    assert rows_of(dict(avazu.read(tmp_path, RAW).splits)).equals(plain)


@pytest.mark.parametrize(
    "hour", ["", "1410210", "141021000", "14102124", "14103299", "tuesday!", "1410 100", "-4102100"]
)
def test_an_unreadable_hour_is_an_error_that_names_its_line(tmp_path: Path, hour: str) -> None:
    write_raw(tmp_path / "train.csv", ["14102100", hour, "14102101"])
    with pytest.raises(ValueError, match=r"train\.csv:3: hour .* is not YYMMDDHH\. Fix or remove the line"):
        avazu.read(tmp_path, RAW)


def test_a_missing_column_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("id,hour,C1\n1,14102100,5\n")
    with pytest.raises(ValueError, match=r'train\.csv: no column "click"\. The file has id, hour, C1'):
        avazu.read(tmp_path, RAW)


def test_x1_has_22_columns_and_the_last_eight_belong_to_the_candidate(tmp_path: Path) -> None:
    for split in SPLITS:
        values = ",".join(str(n) for n in range(22))
        (tmp_path / f"{split}.csv").write_text(f"label,{','.join(avazu.X1_COLUMNS)}\n0,{values}\n")
    data = Data(reader="avazu_x1", folder=".", prepared="p", fields=(FieldSpec(name="feat_20", side="context"),))
    log = avazu.read_x1(tmp_path, data)
    assert [f.name for f in log.fields if f.side == "candidate"] == [f"feat_{n}" for n in (15, 16, 17, 18, 19, 21, 22)]
    assert log.splits["valid"].collect()["feat_22"].to_list() == ["21"]


def test_the_error_about_a_missing_file_says_where_avazu_is_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.csv: no such file \(nor train\.csv\.gz, train\.gz\).*Kaggle's Avazu"):
        avazu.read(tmp_path, RAW)
    with pytest.raises(ValueError, match=r"train\.csv: no such file.*reczoo/Avazu_x1"):
        avazu.read_x1(tmp_path, X1)


def test_only_avazu_can_be_split_by_time() -> None:
    with pytest.raises(ValueError, match='needs reader = "avazu", not "criteo"'):
        Data(reader="criteo", folder=".", prepared="p", split="time")
