"""The readers for MovieLens: which tags a user gives to a film, and which films a user likes.

The context is the user with their attributes. The candidate is the film with its tag, genres and year.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from contract.schema import Field
from model.data.readers.log import LINE, SPLITS, Log, apply_field_specs, scan_parquet
from model.data.readers.published import find_splits, scan_table
from model.data.readers.split import split_by_row
from model.data_config import Data

LABEL = "label"
RATING = "rating"
MIN_LIKED = 4  # the lowest rating that counts as positive
USER = ("user", "gender", "age", "occupation", "zip")
FILM = ("item", "genres", "year")
PUBLISHED = (
    "MovieLens is published at grouplens.org/datasets/movielens. The documentation describes how to lay out the files."
)
PUBLISHED_X1 = "MovielensLatest_x1 is published at huggingface.co/datasets/reczoo/MovielensLatest_x1."


def read_tag(folder: Path, data: Data) -> Log:
    """Return the log in ml10m_tag_{train,valid,test}.parquet, which has the paper's task and fields on MovieLens-10M.

    Raises:
        ValueError: If a file or a column is missing.
    """
    paths = {split: folder / f"ml10m_tag_{split}.parquet" for split in SPLITS}
    columns = (LABEL, "user", "item", "tag")
    splits = {split: scan_parquet(path, columns, PUBLISHED) for split, path in paths.items()}
    return Log(fields(["user"], ["item", "tag"], data), LABEL, splits, paths)


def read_latest_x1(folder: Path, data: Data) -> Log:
    """Return the log in MovielensLatest_x1's {train,valid,test}.csv: AFN's split of ml-tag, as used in the paper.

    Raises:
        ValueError: If a file or a column is missing.
    """
    paths = find_splits(folder, ["{}.csv", "{}.csv.gz"], PUBLISHED_X1)
    columns = (LABEL, "user_id", "item_id", "tag_id")
    splits = {split: scan_table(path, columns) for split, path in paths.items()}
    return Log(fields(["user_id"], ["item_id", "tag_id"], data), LABEL, splits, paths)


def read_1m(folder: Path, data: Data) -> Log:
    """Return the log in ml1m_ratings.parquet, MovieLens-1M with attributes of users and films, split by row.

    The label is whether the rating is at least 4. The rating is not a feature.

    Raises:
        ValueError: If the file or a column is missing.
    """
    path = folder / "ml1m_ratings.parquet"
    frame = scan_parquet(path, (RATING, *USER, *FILM), PUBLISHED)
    liked = (pl.col(RATING) >= MIN_LIKED).cast(pl.Int8).alias(LABEL)
    splits = split_by_row(frame.select(LINE, liked, *USER, *FILM), data.split_seed)
    return Log(fields(USER, FILM, data), LABEL, splits, dict.fromkeys(splits, path))


def fields(context: Sequence[str], candidate: Sequence[str], data: Data) -> tuple[Field, ...]:
    """Return the categorical fields of both sides, with the experiment's changes applied."""
    sides = [*(Field(name, "context") for name in context), *(Field(name, "candidate") for name in candidate)]
    return apply_field_specs(sides, data)
