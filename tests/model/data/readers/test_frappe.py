"""The Frappe readers, tested with synthetic rows in Frappe's file formats."""

from pathlib import Path

import polars as pl
import pytest

from model.data.readers import frappe
from model.data.readers.log import SPLITS
from model.data_config import Data

WORDS = Data(reader="frappe", folder=".", prepared="p")
X1 = Data(reader="frappe_x1", folder=".", prepared="p")


def x1_rows(split: str) -> pl.DataFrame:
    """Return rows in which no number occurs in two fields, as in Frappe_x1."""
    columns = {name: [100 * n, 100 * n + SPLITS.index(split)] for n, name in enumerate(frappe.SIDES)}
    return pl.DataFrame({"label": [1, 0]} | columns)


@pytest.mark.parametrize("name", ["{}.csv", "{}.csv.gz", "x1_ids_{}.csv.gz"])
def test_x1_is_read_from_any_of_its_file_names(tmp_path: Path, name: str) -> None:
    for split in SPLITS:
        file = tmp_path / name.format(split)
        x1_rows(split).write_csv(file, compression="gzip" if name.endswith("gz") else "uncompressed")
    log = frappe.read_x1(tmp_path, X1)
    test = log.splits["test"].collect()
    assert test["item"].to_list() == ["100", "102"]
    assert [f.name for f in log.fields if f.side == "candidate"] == ["item", "cost"]
    assert log.paths["train"] == str(tmp_path / name.format("train"))


def test_both_formats_have_the_same_fields_in_the_same_order(tmp_path: Path) -> None:
    for split in SPLITS:
        x1_rows(split).write_csv(tmp_path / f"{split}.csv")
        x1_rows(split).write_parquet(tmp_path / f"{split}.parquet")
    assert frappe.read(tmp_path, WORDS).fields == frappe.read_x1(tmp_path, X1).fields


def test_a_missing_column_is_an_error_that_names_it(tmp_path: Path) -> None:
    for split in SPLITS:
        x1_rows(split).drop("city").write_csv(tmp_path / f"{split}.csv")
    with pytest.raises(ValueError, match=r'train\.csv: no column "city"'):
        frappe.read_x1(tmp_path, X1)


def test_the_error_about_a_missing_file_says_where_frappe_is_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.csv: no such file \(nor .*x1_ids_train\.csv\.gz\).*reczoo/Frappe_x1"):
        frappe.read_x1(tmp_path, X1)
    with pytest.raises(ValueError, match=r"train\.parquet: no such file.*documentation"):
        frappe.read(tmp_path, WORDS)
