"""The MovieLens readers, tested with synthetic rows in MovieLens's file formats."""

import os
from pathlib import Path

import polars as pl
import pytest

from model.data.readers import movielens
from model.data.readers.log import LINE, SPLITS, Log
from model.data_config import Data

TAG = Data(reader="movielens_tag", folder=".", prepared="p")
LATEST = Data(reader="movielens_latest_x1", folder=".", prepared="p")
ONE_M = Data(reader="movielens_1m", folder=".", prepared="p")
REAL = Path(os.environ.get("CTR_DATA") or "data") / "movielens"


def sides(log: Log) -> dict[str, list[str]]:
    return {side: [f.name for f in log.fields if f.side == side] for side in ("context", "candidate")}


def ratings(rows: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "label": [9] * rows,  # The reader ignores this label and derives its own from the rating.
            "user": range(rows),
            "item": range(rows),
            "rating": [row % 5 + 1 for row in range(rows)],
            "gender": ["F"] * rows,
            "age": ["25-34"] * rows,
            "occupation": ["10"] * rows,
            "zip": ["01234"] * rows,
            "genres": ["Drama|War"] * rows,
            "year": ["1999"] * rows,
        }
    )


def test_tags_are_read_as_published_and_film_and_tag_belong_to_the_candidate(tmp_path: Path) -> None:
    for split in SPLITS:
        frame = pl.DataFrame({"label": [1, 0], "user": [1, 2], "item": [3, 4], "tag": [split, "007"], "note": [0, 0]})
        frame.write_parquet(tmp_path / f"ml10m_tag_{split}.parquet")
    log = movielens.read_tag(tmp_path, TAG)
    assert sides(log) == {"context": ["user"], "candidate": ["item", "tag"]}
    assert log.splits["valid"].collect()["tag"].to_list() == ["valid", "007"]


def test_latest_x1_is_read_as_published(tmp_path: Path) -> None:
    for index, split in enumerate(SPLITS):
        (tmp_path / f"{split}.csv").write_text(f"label,user_id,item_id,tag_id\n{index % 2},1,2,{index}\n")
    log = movielens.read_latest_x1(tmp_path, LATEST)
    assert sides(log) == {"context": ["user_id"], "candidate": ["item_id", "tag_id"]}
    assert log.splits["test"].collect().row(0) == (2, 2, "0", "1", "2", "2")


def test_ratings_of_at_least_four_are_positives_and_ratings_are_not_a_feature(tmp_path: Path) -> None:
    ratings(100).write_parquet(tmp_path / "ml1m_ratings.parquet")
    log = movielens.read_1m(tmp_path, ONE_M)
    assert sides(log) == {
        "context": ["user", "gender", "age", "occupation", "zip"],
        "candidate": ["item", "genres", "year"],
    }
    rows = pl.concat([part.collect() for part in log.splits.values()]).sort(LINE)
    assert rows["label"].to_list() == [0, 0, 0, 1, 1] * 20
    assert rows["user"].to_list() == list(range(100))
    assert "rating" not in rows.columns


def test_a_different_seed_gives_a_different_split(tmp_path: Path) -> None:
    ratings(100).write_parquet(tmp_path / "ml1m_ratings.parquet")
    other = Data(reader="movielens_1m", folder=".", prepared="p", split_seed=2)
    tests = [movielens.read_1m(tmp_path, data).splits["test"].collect() for data in (ONE_M, ONE_M, other)]
    assert tests[0].equals(tests[1])
    assert not tests[0].equals(tests[2])


def test_a_missing_column_is_an_error_that_names_it(tmp_path: Path) -> None:
    ratings(3).drop("zip").write_parquet(tmp_path / "ml1m_ratings.parquet")
    with pytest.raises(ValueError, match=r'ml1m_ratings\.parquet: no column "zip"'):
        movielens.read_1m(tmp_path, ONE_M)


def test_the_error_about_a_missing_file_says_where_movielens_is_published(tmp_path: Path) -> None:
    for read, data, place in (
        (movielens.read_tag, TAG, "grouplens"),
        (movielens.read_1m, ONE_M, "grouplens"),
        (movielens.read_latest_x1, LATEST, "reczoo/MovielensLatest_x1"),
    ):
        with pytest.raises(ValueError, match=rf"no such file.*{place}"):
            read(tmp_path, data)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}: the documentation says where MovieLens is published")
def test_movielens_has_its_published_sizes() -> None:
    tag, one_m = movielens.read_tag(REAL, TAG), movielens.read_1m(REAL, ONE_M)
    rows = [part.select(pl.len()).collect().item() for part in tag.splits.values()]
    assert rows == [200_718, 57_348, 28_674]
    assert sum(part.select(pl.len()).collect().item() for part in one_m.splits.values()) == 1_000_209
