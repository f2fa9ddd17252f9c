"""The readers for MovieLens: which tags a user gives to a film, and which films a user likes.

The context is the user with their attributes. The candidate is the film with its tag, genres and year.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from contract.schema import Field
from model.data.readers.log import Log, require_columns
from model.data.readers.published import find, read_splits, split_file
from model.data.readers.scan import open_parquet
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
    return read_splits(folder, ["ml10m_tag_{}.parquet"], LABEL, fields(["user"], ["item", "tag"]), data, PUBLISHED)


def read_latest_x1(folder: Path, data: Data) -> Log:
    """Return the log in MovielensLatest_x1's {train,valid,test}.csv: AFN's split of ml-tag, as used in the paper.

    Raises:
        ValueError: If a file or a column is missing.
    """
    tagged = fields(["user_id"], ["item_id", "tag_id"])
    return read_splits(folder, ["{}.csv", "{}.csv.gz"], LABEL, tagged, data, PUBLISHED_X1)


def read_1m(folder: Path, data: Data) -> Log:
    """Return the log in ml1m_ratings.parquet, MovieLens-1M with attributes of users and films, split by row.

    The label is whether the rating is at least 4. The rating is not a feature.

    Raises:
        ValueError: If the file or a column is missing.
    """
    part = open_parquet(find(folder, ["ml1m_ratings.parquet"], PUBLISHED))
    require_columns(part.source.name, [RATING], part.columns)
    liked = part.with_column(LABEL, (pl.col(RATING) >= MIN_LIKED).cast(pl.Int8), pl.Int8())
    return split_file(liked, LABEL, fields(USER, FILM), data)


def fields(context: Sequence[str], candidate: Sequence[str]) -> tuple[Field, ...]:
    """Return the categorical fields of both sides."""
    return (*(Field(name, "context") for name in context), *(Field(name, "candidate") for name in candidate))
