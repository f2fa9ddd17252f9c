"""Resampling a log's train negatives changes their items and nothing else."""

import numpy as np
import polars as pl
import pytest

from benchmarks.redraw import redraw


def split(seed: int, rows: int, users: int = 20) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    columns = {"label": random.integers(0, 2, rows), "user": random.integers(0, users, rows)}
    return pl.DataFrame(columns | {"item": random.integers(0, 200, rows), "city": random.integers(0, 5, rows)})


def test_only_the_items_of_train_negatives_change() -> None:
    splits = {"train": split(1, 400), "valid": split(2, 100), "test": split(3, 100)}
    before, after = splits["train"], redraw(splits, seed=1)
    assert after.drop("item").equals(before.drop("item"))
    assert after.schema == before.schema
    positive = before["label"] == 1
    assert after["item"].filter(positive).equals(before["item"].filter(positive))
    moved = before.with_columns(new=after["item"]).filter(pl.col("label") == 0, pl.col("new") != pl.col("item"))
    assert len(moved) > 0.9 * len(before.filter(pl.col("label") == 0))
    assert redraw(splits, seed=1).equals(after)
    assert not redraw(splits, seed=2).equals(after)


def test_no_pair_is_sampled_twice_or_occurs_in_another_file_or_as_a_positive() -> None:
    splits = {"train": split(1, 400), "valid": split(2, 100), "test": split(3, 100)}
    after = redraw(splits, seed=1)
    drawn = after.filter(pl.col("label") == 0).select("user", "item")
    assert drawn.is_unique().all()
    kept = pl.concat([after.filter(pl.col("label") == 1), splits["valid"], splits["test"]])
    assert drawn.join(kept, on=["user", "item"], how="semi").is_empty()


def test_a_user_with_too_few_items_is_an_error_that_names_the_user() -> None:
    train = pl.DataFrame({"label": [0, 0, 1], "user": [7, 7, 7], "item": [1, 2, 3]})
    with pytest.raises(ValueError, match="user 7 has 2 negatives in train, but only 1 items"):
        redraw({"train": train, "valid": train.filter(pl.col("item") == 1)}, seed=1)
