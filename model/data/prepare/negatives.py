"""Keeping only a share of the non-clicks of train (Data.train_negative_rate)."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model.data.prepare.writing import GrowingArray, read_chunks
from model.data.readers.split import DRAW, WORD, with_draw

# This differs from the seed of a random split. Otherwise, the draws would depend on those that chose the rows of train.
SEED = int.from_bytes(hashlib.blake2b(b"train_negative_rate", digest_size=8).digest(), "little")
ROW = "row"


def write_kept(path: Path, labels: Path, rate: float) -> None:
    """Write which rows of train are kept, bool (rows): all clicks, and a share of the non-clicks.

    The choice depends only on the row's number in train. So the same log always gives the same rows, whatever the
    number of its files.

    Args:
        path: The file to write.
        labels: The labels of train, uint8 (rows).
        rate: The share of the non-clicks to keep.

    Raises:
        ValueError: If no non-click is kept.
    """
    negatives = kept_negatives = 0
    with GrowingArray(path, np.bool_) as array:
        for chunk in read_chunks(labels):
            is_click = chunk > 0
            kept = is_click | (draws(array.rows, len(chunk)) < rate)
            array.append(kept)
            negatives += int((~is_click).sum())
            kept_negatives += int((kept & ~is_click).sum())
    if not kept_negatives:
        raise ValueError(
            f"train_negative_rate = {rate:g} keeps none of the {negatives:,} non-clicks of train. Use a larger share."
        )


def draws(first: int, count: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each of `count` rows, of which the first has the number `first`."""
    rows = pl.LazyFrame({ROW: np.arange(first, first + count, dtype=np.uint64)})
    drawn: NDArray[np.float64] = with_draw(rows, SEED, pl.col(ROW)).collect()[DRAW].to_numpy() / WORD
    return drawn
