"""Weights, units and requests of rows are prepared for every split."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model.data.prepare import reading
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import Prepared
from model.data.readers.log import SPLITS
from model.data_config import Data

WEIGHTS = [0.0, 1.0, 2.5, 1.0]


def prepared(
    folder: Path,
    columns: dict[str, pl.Series],
    weight: str = "",
    unit: str = "",
    request: str = "",
    position: str = "",
    missing: tuple[str, ...] = (),
) -> Prepared:
    frame = pl.DataFrame({"click": [0, 1, 0, 1], "place": ["p", "p", "q", "q"], "ad": ["a", "b", "a", "b"]} | columns)
    for split in SPLITS:
        frame.write_parquet(folder / f"{split}.parquet")
    data = Data(
        reader="table",
        folder=".",
        prepared="prepared",
        train="train.parquet",
        valid="valid.parquet",
        test="test.parquet",
        label="click",
        context=("place",),
        candidate=("ad",),
        weight=weight,
        unit=unit,
        request=request,
        position=position,
        missing=missing,
    )
    return prepare(folder, data)


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_weights_units_and_requests_follow_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    monkeypatch.setattr(reading, "BATCH_ROWS", batch_rows)
    columns = {
        "w": pl.Series(WEIGHTS),
        "user": pl.Series(["u2", " ", "u1", " u2 "]),
        "auction": pl.Series([7.0, 7.0, None, 8.0]),
    }
    log = prepared(tmp_path, columns, weight="w", unit="user", request="auction")
    for split in ("train", "valid", "test"):
        weights, units, requests = log.weights(split), log.units(split), log.requests(split)
        assert weights is not None
        assert units is not None
        assert requests is not None
        assert [str(column.dtype) for column in (weights, units, requests)] == ["float32", "int32", "int32"]
        assert weights.tolist() == WEIGHTS
        assert units.tolist() == [1, -2, 2, 1]
        assert requests.tolist() == [1, 1, -3, 2]


@pytest.mark.parametrize(
    ("users", "marker"),
    [
        (pl.Series(["u", "NULL", " NULL ", "v"]), "NULL"),
        (pl.Series(["u", "NULL", "NULL", "v"], dtype=pl.Categorical()), "NULL"),
        (pl.Series([7, -1, -1, 8]), "-1"),
        (pl.Series([7.0, -1.0, -1.0, 8.0]), "-1"),
        (pl.Series([7.0, float("nan"), float("nan"), 8.0], dtype=pl.Float32), "nan"),
        (pl.Series([7.0, float("-inf"), float("-inf"), 8.0]), "-inf"),
    ],
)
def test_a_marker_is_no_unit_and_no_request(tmp_path: Path, users: pl.Series, marker: str) -> None:
    log = prepared(tmp_path, {"user": users}, unit="user", request="user", missing=("n/a", marker))
    for column in (log.units("test"), log.requests("test")):
        assert column is not None
        assert column.tolist() == [1, -2, -3, 2]


def test_a_log_without_these_columns_has_none(tmp_path: Path) -> None:
    log = prepared(tmp_path, {})
    assert [log.weights("train"), log.units("valid"), log.requests("test")] == [None] * 3


def test_a_column_may_also_be_a_field(tmp_path: Path) -> None:
    units = prepared(tmp_path, {}, unit="ad").units("train")
    assert units is not None
    assert units.tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1, -1, 1], r'row 3: column "w" holds -1; expected a weight of at least 0'),
        ([1, None, 1, 1], r'row 2: column "w" is empty; expected a weight of at least 0'),
        ([1.0, 1e300, 1, 1], r'row 2: column "w" holds 1e\+300; expected a weight'),
        ([1.0, float("inf"), 1, 1], r'row 2: column "w" holds inf; expected a finite number'),
        (["1", "x", "1", "1"], r'row 2: column "w" holds "x"; expected a number'),
        ([0, 0, 0, 0], r'train\.parquet: column "w" is 0 in all rows of train'),
    ],
)
def test_a_weight_that_is_not_a_finite_number_of_at_least_0_is_rejected(
    tmp_path: Path, weights: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, {"w": pl.Series(weights, strict=False)}, weight="w")


@pytest.mark.parametrize(
    "positions",
    [
        pl.Series([0, 3, None, 1]),
        pl.Series([0.0, 3.0, None, 1.0]),
        pl.Series(["0", " 3", " ", "1"]),
        pl.Series(["0", "3.0", "n/a", "1"]),
        pl.Series([0, 3, -9, 1]),
    ],
)
def test_positions_follow_the_rows_and_minus_1_is_missing(tmp_path: Path, positions: pl.Series) -> None:
    log = prepared(tmp_path, {"at": positions}, position="at", missing=("n/a", "-9"))
    for split in SPLITS:
        found = log.positions(split)
        assert found is not None
        assert str(found.dtype) == "int32"
        assert found.tolist() == [0, 3, -1, 1]


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([0, 1, -1, 2], r'row 3: column "at" holds -1; expected an integer of at least 0. Fix the file, or leave'),
        ([0, 1.5, 1, 2], r'row 2: column "at" holds 1.5; expected an integer'),
        ([0, 2**31, 1, 2], r'row 2: column "at" holds 2147483648; expected an integer of at most 2,147,483,647'),
        (["0", "top", "1", "2"], r'row 2: column "at" holds "top"; expected a number'),
        ([None, None, None, None], r'train\.parquet: column "at" is missing in all rows of train. Remove position'),
    ],
)
def test_a_position_that_is_not_an_integer_of_at_least_0_is_rejected(
    tmp_path: Path, positions: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, {"at": pl.Series(positions, strict=False)}, position="at")


def test_a_file_with_another_number_of_rows_is_rejected(tmp_path: Path) -> None:
    log = prepared(tmp_path, {"w": pl.Series(WEIGHTS)}, weight="w")
    np.save(log.folder / "valid.weights.npy", np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"valid\.weights\.npy has 3 rows instead of 4\. Run ctr-prepare again"):
        log.weights("valid")
