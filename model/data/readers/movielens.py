"""MovieLens: which tag a user gives a film, and which films a user likes.

Context: the user and what is known of them. Candidate: the film, its tag, genres and year.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from contract.schema import Field
from model.data.readers.log import LINE, SPLITS, Log, declared, scan_parquet
from model.data.readers.published import find_splits, scan_table
from model.data.readers.split import split_by_row
from model.data_config import Data

LABEL = "label"
RATING = "rating"
LIKED = 4  # a rating from here on is a positive
USER = ("user", "gender", "age", "occupation", "zip")
FILM = ("item", "genres", "year")
PUBLISHED = "MovieLens is published at grouplens.org/datasets/movielens: the README says how to lay it out"
PUBLISHED_X1 = "MovielensLatest_x1 is published at huggingface.co/datasets/reczoo/MovielensLatest_x1"


def read_tag(folder: Path, data: Data) -> Log:
    """Reads ml10m_tag_{train,valid,test}.parquet: the paper's task and fields, from MovieLens-10M.

    Raises:
        ValueError: naming the file, for a missing one, or a missing column.
    """
    paths = {split: folder / f"ml10m_tag_{split}.parquet" for split in SPLITS}
    columns = (LABEL, "user", "item", "tag")
    splits = {split: scan_parquet(path, columns, PUBLISHED) for split, path in paths.items()}
    return Log(declared(_fields(["user"], ["item", "tag"]), data), LABEL, splits, paths)


def read_latest_x1(folder: Path, data: Data) -> Log:
    """Reads MovielensLatest_x1's {train,valid,test}.csv: AFN's split of ml-tag, the paper's data set.

    Raises:
        ValueError: naming the file, for a missing one, or a missing column.
    """
    paths = find_splits(folder, ["{}.csv", "{}.csv.gz"], PUBLISHED_X1)
    columns = (LABEL, "user_id", "item_id", "tag_id")
    splits = {split: scan_table(path, columns) for split, path in paths.items()}
    return Log(declared(_fields(["user_id"], ["item_id", "tag_id"]), data), LABEL, splits, paths)


def read_1m(folder: Path, data: Data) -> Log:
    """Reads ml1m_ratings.parquet, MovieLens-1M with the users' attributes and the films' genres and year, and splits it
    by row. The label is rating >= 4, and the rating is no feature.

    Raises:
        ValueError: naming the file, for a missing one, or a missing column.
    """
    path = folder / "ml1m_ratings.parquet"
    frame = scan_parquet(path, (RATING, *USER, *FILM), PUBLISHED)
    liked = (pl.col(RATING) >= LIKED).cast(pl.Int8).alias(LABEL)
    splits = split_by_row(frame.select(LINE, liked, *USER, *FILM), data.split_seed)
    return Log(declared(_fields(USER, FILM), data), LABEL, splits, dict.fromkeys(splits, path))


def _fields(context: Sequence[str], candidate: Sequence[str]) -> list[Field]:
    return [Field(name, "context") for name in context] + [Field(name, "candidate") for name in candidate]
