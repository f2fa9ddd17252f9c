"""The generated log of the reference model: its fields, its distribution, and its seed."""

from pathlib import Path

import polars as pl
import pytest

from loadtest.reference_model import EXPERIMENT, write_log
from model.experiment_config import read_experiment

ROWS = {"train": 2000, "valid": 300, "test": 300}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("data"), ROWS)


def test_the_log_has_the_fields_of_its_experiment_and_clicks(log: Path) -> None:
    data = read_experiment(EXPERIMENT).data
    assert (len(data.context), len(data.candidate)) == (18, 5)
    for split, rows in ROWS.items():
        frame = pl.read_parquet(log / f"{split}.parquet")
        assert set(frame.columns) == {*data.context, *data.candidate, data.label}
        assert len(frame) == rows
        assert 0.02 < frame[data.label].cast(pl.Float64).mean() < 0.5  # type: ignore[operator]


def test_tokens_are_strings_few_frequent_and_most_rare(log: Path) -> None:
    users = pl.read_parquet(log / "train.parquet")["user"]
    assert users.dtype == pl.String
    assert users.value_counts()["count"].max() > 20  # type: ignore[operator]
    assert users.n_unique() > 500


def test_the_same_seed_gives_the_same_log(log: Path, tmp_path: Path) -> None:
    again, other = write_log(tmp_path / "a", ROWS), write_log(tmp_path / "b", ROWS, seed=2)
    first = pl.read_parquet(log / "train.parquet")
    assert first.equals(pl.read_parquet(again / "train.parquet"))
    assert not first.equals(pl.read_parquet(other / "train.parquet"))
