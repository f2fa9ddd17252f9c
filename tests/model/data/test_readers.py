"""Readers: what a log's author is told when it does not fit."""

import os
from pathlib import Path

import msgspec
import polars as pl
import pytest

from model.data import frappe, generated, table
from model.data.generate import main as generate
from model.data.log import Log
from model.experiment import Data

FRAPPE = Path(os.environ.get("CTR_DATA") or "data") / "frappe"
OWN = Data(
    reader="table",
    folder=".",
    prepared="prepared",
    train="train.csv",
    valid="valid.csv",
    test="test.csv",
    label="clicked",
    context=("user", "age"),
    candidate=("ad",),
    numeric=("age",),
)
GOOD = "clicked,user,age,ad,note\n1,0017,31,a,x\n0,18,,a,y\n"


def read_own(folder: Path, train: str = GOOD) -> Log:
    (folder / "train.csv").write_text(train)
    (folder / "valid.csv").write_text(GOOD)
    (folder / "test.csv").write_text(GOOD)
    return table.read(folder, OWN)


def test_an_own_log_has_the_fields_of_the_experiment(tmp_path: Path) -> None:
    log = read_own(tmp_path)
    assert [(f.name, f.side, f.kind) for f in log.fields] == [
        ("user", "context", "categorical"),
        ("age", "context", "numeric"),
        ("ad", "candidate", "categorical"),
    ]
    assert log.splits["train"].columns == ["clicked", "user", "age", "ad"]
    assert log.extra == ()


def test_an_id_in_a_csv_file_keeps_its_zeros(tmp_path: Path) -> None:
    assert read_own(tmp_path).splits["train"]["user"].to_list() == ["0017", "18"]


def test_an_empty_number_in_a_csv_file_is_missing(tmp_path: Path) -> None:
    assert read_own(tmp_path).splits["train"]["age"].to_list() == [31.0, None]


@pytest.mark.parametrize("ending", ["parquet", "csv.gz"])
def test_an_own_log_may_be_parquet_or_compressed(tmp_path: Path, ending: str) -> None:
    frame = pl.DataFrame({"clicked": [1, 0], "user": ["u", "v"], "age": [30.5, None], "ad": ["a", "b"]})
    for split in ("train", "valid", "test"):
        if ending == "parquet":
            frame.write_parquet(tmp_path / f"{split}.{ending}")
        else:
            frame.write_csv(tmp_path / f"{split}.{ending}", compression="gzip")
    data = msgspec.structs.replace(OWN, train=f"train.{ending}", valid=f"valid.{ending}", test=f"test.{ending}")
    read = table.read(tmp_path, data).splits["valid"]
    assert read["age"].to_list() == [30.5, None]
    assert read["user"].to_list() == ["u", "v"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("clicked,user,age\n1,u,3\n", r"train\.csv: has no column 'ad', only clicked, user, age"),
        ("clicked,user,age,ad\n2,u,3,a\n", r"train\.csv: column 'clicked' holds 2\.0 in 1 rows: a label is 0 or 1"),
        ("clicked,user,age,ad\nyes,u,3,a\n", r"train\.csv: column 'clicked' holds 'yes'"),
        ("clicked,user,age,ad\n,u,3,a\n1,u,3,a\n", r"train\.csv: column 'clicked' is null in 1 rows"),
        ("clicked,user,age,ad\n1,u,old,a\n", r"train\.csv: column 'age' holds 'old' in 1 rows: it takes numbers"),
        ("clicked,user,age,ad\n", r"train\.csv: has no rows"),
        ("", r"train\.csv: is no readable CSV file"),
        ("clicked,user,age,ad\n1,u,3,a,b,c,d\n", r"train\.csv: is no readable CSV file"),
    ],
)
def test_an_own_log_that_does_not_fit_says_file_column_and_value(tmp_path: Path, train: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_own(tmp_path, train)


def test_a_label_that_is_also_a_field_is_refused(tmp_path: Path) -> None:
    data = msgspec.structs.replace(OWN, label="ad")
    with pytest.raises(ValueError, match="label 'ad' is also a field"):
        table.read(tmp_path, data)


def test_an_own_log_in_another_format_is_refused(tmp_path: Path) -> None:
    data = msgspec.structs.replace(OWN, train="a.xlsx")
    with pytest.raises(ValueError, match=r"a\.xlsx: a log ends in \.parquet, \.csv or \.csv\.gz"):
        table.read(tmp_path, data)


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train\.parquet: is no readable parquet file"):
        frappe.read(tmp_path, Data(reader="frappe", folder="frappe", prepared="p"))


def test_a_missing_log_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.parquet: no such file.*README"):
        frappe.read(tmp_path / "frappe", Data(reader="frappe", folder="frappe", prepared="p"))
    with pytest.raises(ValueError, match=rf"train\.parquet: no such file.*model\.data\.generate --data {tmp_path}$"):
        generated.read(tmp_path / "generated", Data(reader="generated", folder="generated", prepared="p"))
    with pytest.raises(ValueError, match=r"train\.csv: no such file.*relative to"):
        table.read(tmp_path, OWN)


def test_the_generated_log_carries_the_truth_but_not_as_a_feature(tmp_path: Path) -> None:
    assert generate(["--data", str(tmp_path), "--requests", "200"]) == 0
    log = generated.read(tmp_path / "generated", Data(reader="generated", folder="generated", prepared="p"))
    assert log.extra == ("request", "true_ctr")
    assert not {f.name for f in log.fields} & {"request", "true_ctr", "click"}
    assert [f.name for f in log.fields if f.kind == "numeric"] == ["session_depth", "bid"]


@pytest.mark.skipif(not FRAPPE.is_dir(), reason=f"no {FRAPPE}: the README says where Frappe is published")
def test_frappe_has_its_ten_fields_and_published_sizes() -> None:
    log = frappe.read(FRAPPE, Data(reader="frappe", folder="frappe", prepared="p"))
    assert [len(frame) for frame in log.splits.values()] == [202_027, 57_722, 28_860]
    assert [f.name for f in log.fields if f.side == "candidate"] == ["item", "cost"]
    assert len(log.fields) == 10
    assert all(f.kind == "categorical" for f in log.fields)
