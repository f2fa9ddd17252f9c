"""The Criteo readers, tested with synthetic rows in Criteo's file formats."""

import gzip
from pathlib import Path

import pytest

from model.data.readers import criteo
from model.data.readers.log import LINE, SPLITS
from model.data_config import Data, FieldSpec

RAW = Data(reader="criteo", folder=".", prepared="p")
X1 = Data(reader="criteo_x1", folder=".", prepared="p")


def raw_line(row: int) -> str:
    """Return a line in which every seventh number and every fifth category is empty."""
    numbers = [str(row + n) if (row + n) % 7 else "" for n in range(13)]
    categories = [f"{row * 31 + n:08x}" if (row + n) % 5 else "" for n in range(26)]
    return "\t".join([str(row % 2), *numbers, *categories])


def write_raw(folder: Path, rows: int = 200) -> None:
    (folder / "train.txt").write_text("".join(raw_line(row) + "\n" for row in range(rows)))


def test_an_empty_value_of_a_raw_line_is_missing(tmp_path: Path) -> None:
    write_raw(tmp_path)
    log = criteo.read(tmp_path, RAW)
    seen = {}
    for part in log.splits.values():
        for row in part.collect().iter_rows(named=True):
            seen[row[LINE]] = "\t".join(row[name] or "" for name in criteo.COLUMNS)
    assert seen == {row + 1: raw_line(row) for row in range(200)}


def test_a_compressed_file_gives_the_same_rows_as_the_plain_one(tmp_path: Path) -> None:
    write_raw(tmp_path)
    plain = {split: part.collect() for split, part in criteo.read(tmp_path, RAW).splits.items()}
    text = (tmp_path / "train.txt").read_bytes()
    (tmp_path / "train.txt").unlink()
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(text))
    log = criteo.read(tmp_path, RAW)
    assert all(plain[split].equals(log.splits[split].collect()) for split in SPLITS)
    assert log.paths["valid"] == str(tmp_path / "train.txt.gz")


def test_counts_are_numeric_and_c14_to_c26_belong_to_the_candidate(tmp_path: Path) -> None:
    write_raw(tmp_path)
    fields = criteo.read(tmp_path, RAW).fields
    assert [f.name for f in fields if f.kind == "numeric"] == [f"I{n}" for n in range(1, 14)]
    assert [f.name for f in fields if f.side == "candidate"] == [f"C{n}" for n in range(14, 27)]
    assert len(fields) == 39


def test_an_experiment_may_move_a_column_to_the_other_side(tmp_path: Path) -> None:
    write_raw(tmp_path)
    data = Data(reader="criteo", folder=".", prepared="p", fields=(FieldSpec(name="C3", side="candidate"),))
    sides = {field.name: field.side for field in criteo.read(tmp_path, data).fields}
    assert (sides["C2"], sides["C3"]) == ("context", "candidate")


def test_x1_keeps_the_published_split_and_values(tmp_path: Path) -> None:
    header = ",".join(criteo.COLUMNS)
    for index, split in enumerate(SPLITS):
        values = [f"0.{index}{n}" for n in range(13)] + [str(index * 100 + n) for n in range(26)]
        (tmp_path / f"{split}.csv").write_text(f"{header}\n1,{','.join(values)}\n")
    log = criteo.read_x1(tmp_path, X1)
    row = log.splits["test"].collect()
    assert (row[LINE].item(), row["I2"].item(), row["C26"].item()) == (2, "0.21", "225")
    assert len(log.fields) == 39


@pytest.mark.parametrize("columns", [39, 41])
def test_a_line_with_a_wrong_number_of_columns_is_an_error_that_names_it(tmp_path: Path, columns: int) -> None:
    wrong = "\t".join(["0"] * columns)
    (tmp_path / "train.txt").write_text(f"{raw_line(0)}\n{wrong}\n{raw_line(1)}\n")
    with pytest.raises(ValueError, match=rf"train\.txt:2: expected 40 columns, found {columns}"):
        criteo.read(tmp_path, RAW)


def test_a_file_that_is_not_gzip_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "train.txt.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"train\.txt\.gz: the gzip file is truncated or corrupt"):
        criteo.read(tmp_path, RAW)


def test_the_error_about_a_missing_file_says_where_criteo_is_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.txt: no such file \(nor train\.txt\.gz\).*Kaggle's Criteo"):
        criteo.read(tmp_path, RAW)
    with pytest.raises(ValueError, match=r"train\.csv: no such file.*reczoo/Criteo_x1"):
        criteo.read_x1(tmp_path, X1)
