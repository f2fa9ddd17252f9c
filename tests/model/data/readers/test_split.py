"""Splitting a log: every row is in exactly one split, and always in the same one."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.readers.log import LINE, SPLITS
from model.data.readers.split import DRAW, GOLDEN, WORD, edges, split_by_day, split_by_row, with_draw
from tests.support.examples import examples

SEEDS = st.integers(-(2**63), 2**63 - 1)


def log_of(rows: int, first_line: int = 1) -> pl.LazyFrame:
    lines = range(first_line, first_line + rows)
    return pl.LazyFrame({LINE: lines, "value": [f"v{line}" for line in lines]}, schema_overrides={LINE: pl.UInt32})


def lines_of(splits: dict[str, pl.LazyFrame]) -> dict[str, list[int]]:
    return {split: part.collect(engine="streaming")[LINE].to_list() for split, part in splits.items()}


def splitmix64(seed: int, outputs: int) -> list[int]:
    """Compute the outputs sequentially, as the authors' code does."""
    state, drawn = seed % WORD, []
    for _ in range(outputs):
        state = (state + GOLDEN) % WORD
        word = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
        drawn.append(word ^ (word >> 31))
    return drawn


@settings(max_examples=examples(50), deadline=None)
@given(SEEDS, st.integers(0, 300), st.integers(1, 2))
def test_a_split_by_row_contains_every_row_once_and_in_order(seed: int, rows: int, first_line: int) -> None:
    parts = lines_of(dict(split_by_row(log_of(rows, first_line), seed)))
    assert tuple(parts) == SPLITS
    assert all(lines == sorted(lines) for lines in parts.values())
    assert sorted(line for lines in parts.values() for line in lines) == list(range(first_line, first_line + rows))


@settings(max_examples=examples(20), deadline=None)
@given(SEEDS, st.integers(1, 200), st.integers(1, 200))
def test_a_row_stays_in_its_split_when_the_file_grows(seed: int, rows: int, more: int) -> None:
    first = lines_of(dict(split_by_row(log_of(rows), seed)))
    again = lines_of(dict(split_by_row(log_of(rows), seed)))
    longer = lines_of(dict(split_by_row(log_of(rows + more), seed)))
    assert first == again
    assert first == {split: [line for line in lines if line <= rows] for split, lines in longer.items()}


@settings(max_examples=examples(20), deadline=None)
@given(SEEDS)
def test_the_random_numbers_match_splitmix64(seed: int) -> None:
    assert with_draw(log_of(20), seed).collect()[DRAW].to_list() == splitmix64(seed, 20)


def test_the_split_of_a_seed_does_not_change_between_versions() -> None:
    assert splitmix64(1234567, 1) == [6457827717110365317]  # The value comes from the reference implementation in C.
    assert lines_of(dict(split_by_row(log_of(30), 1)))["test"] == [3, 30]
    assert edges() == (8 * WORD // 10, 9 * WORD // 10)


def test_the_ratio_is_8_to_1_to_1_and_depends_on_the_seed() -> None:
    one, other = (lines_of(dict(split_by_row(log_of(50_000), seed))) for seed in (1, 2))
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert len(one[split]) / 50_000 == pytest.approx(share, abs=0.006)
        assert one[split] != other[split]


def test_values_stay_with_their_lines() -> None:
    part = split_by_row(log_of(100), 1)["valid"].collect()
    assert part.columns == [LINE, "value"]
    assert part["value"].to_list() == [f"v{line}" for line in part[LINE]]


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.integers(0, 9), min_size=3, max_size=60).filter(lambda days: len(set(days)) >= 3))
def test_the_last_day_is_test_and_the_day_before_is_valid(days: list[int]) -> None:
    frame = log_of(len(days)).with_columns(day=pl.Series(days))
    parts = {split: part.collect() for split, part in split_by_day(frame, pl.col("day"), Path("log")).items()}
    last = sorted(set(days))[-2:]
    assert [set(parts[split]["day"]) for split in SPLITS] == [set(days) - set(last), {last[0]}, {last[1]}]
    assert sum(map(len, parts.values())) == len(days)


def test_a_log_of_two_days_cannot_be_split_by_time() -> None:
    frame = log_of(2).with_columns(day=pl.Series([1, 2]))
    with pytest.raises(ValueError, match=r'train\.csv: has 2 days; split = "time" needs 3\. Use split = "row"'):
        split_by_day(frame, pl.col("day"), Path("train.csv"))
