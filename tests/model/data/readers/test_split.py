"""Splitting a log: every row is in exactly one split, and always in the same one."""

from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.readers.log import FILE, LINE, SPLITS
from model.data.readers.split import DRAW, GOLDEN, WORD, edges, split_by_day, split_by_row, split_rows, with_draw
from model.data_config import Data, SplitAtRandom, SplitByTime
from tests.support.examples import examples

FIRST_TEST_LINES = [5, 13, 34]
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


DAY = 86_400
START = 1_769_893_200  # 2026-01-31T21:00:00Z


def by_time(valid: str, test: str, gap: str | None = None, train: str | None = None) -> Data:
    split = SplitByTime(valid=valid, test=test, gap=gap, train=train)
    return Data(
        reader="table",
        folder=".",
        prepared="p",
        files=("log.csv",),
        split=split,
        time="at",
        context=("u",),
        candidate=("a",),
    )


def at_random(valid: float, test: float, seed: int = 1, unit: str = "") -> Data:
    return data_of(SplitAtRandom(valid=valid, test=test, seed=seed, unit=unit))


def data_of(split: SplitByTime | SplitAtRandom) -> Data:
    return Data(
        reader="table",
        folder=".",
        prepared="p",
        files=("log.csv",),
        split=split,
        time="at",
        context=("u",),
        candidate=("a",),
    )


def timed(times: list[Any], files: list[int] | None = None) -> pl.LazyFrame:
    frame = pl.LazyFrame({LINE: range(2, len(times) + 2), "at": pl.Series(times)})
    return frame if files is None else frame.with_columns(pl.Series(FILE, files))


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.integers(0, 20 * DAY), min_size=4, max_size=40),
    st.sampled_from([None, "1h", "2d"]),
    st.sampled_from([None, "1h", "3d", "30d"]),
)
def test_durations_count_back_from_the_newest_row(offsets: list[int], gap: str | None, train: str | None) -> None:
    times = [START + offset for offset in offsets]
    last, gap_s = max(times), {None: 0, "1h": 3600, "2d": 2 * DAY}[gap]
    train_s = {None: 30 * DAY, "1h": 3600, "3d": 3 * DAY, "30d": 30 * DAY}[train]
    train_end_s = DAY + gap_s + 12 * 3600 + gap_s
    expected: dict[str, list[int]] = {split: [] for split in SPLITS}
    for time in times:
        age = last - time
        if age < DAY:
            expected["test"].append(time)
        elif DAY + gap_s <= age < DAY + gap_s + 12 * 3600:
            expected["valid"].append(time)
        elif train_end_s <= age < train_end_s + train_s:
            expected["train"].append(time)
    data = by_time("12h", "1d", gap, train)
    if all(expected.values()):
        parts = {split: part.collect() for split, part in split_rows(timed(times), data).items()}
        assert {split: part["at"].to_list() for split, part in parts.items()} == expected
        assert all(part.columns == [LINE, "at"] for part in parts.values())
        if gap is None and train is None:
            assert sorted(line for part in parts.values() for line in part[LINE]) == list(range(2, len(times) + 2))
    else:
        with pytest.raises(ValueError, match=r"split: (train|valid) would be empty"):
            split_rows(timed(times), data)


@pytest.mark.parametrize("dtype", [pl.Int64(), pl.Float64(), pl.String(), pl.Datetime("ms"), pl.Datetime("us", "UTC")])
def test_times_of_every_type_give_the_same_split(dtype: pl.DataType) -> None:
    seconds = pl.Series([START + hour * 3600 for hour in range(100)])
    times = (
        seconds.cast(dtype)
        if not isinstance(dtype, pl.Datetime)
        else (seconds * 1000).cast(pl.Datetime("ms")).cast(dtype)
    )
    lines = lines_of(dict(split_rows(timed(times.to_list()).with_columns(at=times), by_time("10h", "1d"))))
    assert {split: (part[0], part[-1], len(part)) for split, part in lines.items()} == {
        "train": (2, 67, 66),
        "valid": (68, 77, 10),
        "test": (78, 101, 24),
    }


def test_an_empty_part_names_the_first_and_the_last_time() -> None:
    times = [START, START + 3600, START + 5 * DAY]
    message = (
        r"split: valid would be empty. The log runs from 2026-01-31T21:00:00Z to 2026-02-05T21:00:00Z, and the "
        r'valid = "1d", test = "1d", gap = "1h" count back'
    )
    with pytest.raises(ValueError, match=message):
        split_rows(timed(times), by_time("1d", "1d", "1h"))
    with pytest.raises(ValueError, match="split: train would be empty"):
        split_rows(timed(times), by_time("1w", "1d"))
    with pytest.raises(
        ValueError, match=r'train would be empty.* the train = "1h", valid = "1d", test = "2d" count back'
    ):
        split_rows(timed([START, START + 3 * DAY, START + 5 * DAY]), by_time("1d", "2d", train="1h"))
    with pytest.raises(ValueError, match="split: the log has no rows"):
        split_rows(timed(times).limit(0), by_time("1d", "1d"))


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ([str(START), "yesterday", str(START)], r'column "at" holds "yesterday"; expected an ISO 8601 time'),
        ([START, None, START], r'column "at" is empty; expected an ISO 8601 time.*fix or remove the row'),
        ([START, 0, START], r'column "at" holds 0; expected an ISO 8601 time'),
    ],
)
def test_a_row_without_a_time_is_reported_with_its_file_and_line(times: list[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^file 1, line 3: {reason}"):
        split_rows(timed(times), by_time("1d", "1d"))
    with pytest.raises(ValueError, match=rf"^b\.csv:3: {reason}"):
        split_rows(timed(times, [0, 1, 1]), by_time("1d", "1d"), lambda file, line: f"{'ab'[file]}.csv:{line}")


def test_a_time_column_of_another_type_is_reported() -> None:
    with pytest.raises(ValueError, match='column "at" has the type Boolean; expected text, timestamps'):
        split_rows(timed([True, False]), by_time("1d", "1d"))


@settings(max_examples=examples(30), deadline=None)
@given(SEEDS, st.integers(0, 300), st.lists(st.integers(0, 2), min_size=300, max_size=300).map(sorted))
def test_a_random_split_contains_every_row_once_and_in_order(seed: int, rows: int, files: list[int]) -> None:
    frame = log_of(rows).with_columns(pl.Series(FILE, files[:rows], dtype=pl.UInt32))
    parts = lines_of(dict(split_rows(frame, at_random(0.2, 0.3, seed))))
    assert tuple(parts) == SPLITS
    assert all(lines == sorted(lines) for lines in parts.values())
    assert sorted(line for lines in parts.values() for line in lines) == list(range(1, rows + 1))


def test_shares_are_kept_and_equal_lines_of_two_files_are_drawn_independently() -> None:
    frame = pl.concat([log_of(20_000).with_columns(pl.lit(file, pl.UInt32).alias(FILE)) for file in (0, 1)])
    parts = {split: part.collect() for split, part in split_rows(frame, at_random(0.2, 0.3)).items()}
    for split, share in (("train", 0.5), ("valid", 0.2), ("test", 0.3)):
        assert len(parts[split]) / 40_000 == pytest.approx(share, abs=0.01)
        lines = [set(part[LINE]) for part in parts[split].partition_by(FILE)]
        assert len(lines[0] & lines[1]) / 20_000 == pytest.approx(share**2, abs=0.01)


UNITS = st.lists(st.none() | st.sampled_from(["u1", " u1", "u2", "7", "7.0", ""]) | st.text(max_size=3), max_size=40)


@settings(max_examples=examples(50), deadline=None)
@given(UNITS, SEEDS)
def test_a_unit_is_in_one_split_and_stays_there(units: list[str | None], seed: int) -> None:
    frame = log_of(len(units)).with_columns(pl.Series("user", units, dtype=pl.String))
    data = at_random(0.3, 0.3, seed, "user")
    split_of: dict[str, str] = {}
    parts = {split: part.collect() for split, part in split_rows(frame, data).items()}
    for split, part in parts.items():
        for unit in part["user"].drop_nulls():
            if unit.strip():
                assert split_of.setdefault(unit.strip(), split) == split
    assert sum(map(len, parts.values())) == len(units)
    backwards = {split: part.collect() for split, part in split_rows(frame.reverse(), data).items()}
    assert {split: sorted(part[LINE]) for split, part in backwards.items()} == {
        split: sorted(part[LINE]) for split, part in parts.items()
    }


def test_the_split_of_a_unit_does_not_depend_on_the_type_of_its_column() -> None:
    numbers = pl.Series("user", range(1000))
    parts = [
        lines_of(dict(split_rows(log_of(1000).with_columns(numbers.cast(dtype)), at_random(0.1, 0.1, 7, "user"))))
        for dtype in (pl.Int64(), pl.Float64(), pl.String())
    ]
    assert parts[0] == parts[1] == parts[2]
    assert parts[0]["test"][:3] == FIRST_TEST_LINES  # the split of a seed does not change between versions


def test_rows_without_a_unit_are_spread_over_the_splits() -> None:
    frame = log_of(2000).with_columns(pl.lit(None, pl.String).alias("user"))
    parts = lines_of(dict(split_rows(frame, at_random(0.25, 0.25, 1, "user"))))
    assert {split: len(lines) for split, lines in parts.items()} == pytest.approx(
        {"train": 1000, "valid": 500, "test": 500}, rel=0.15
    )


@pytest.mark.parametrize(
    ("marker", "value"), [("NULL", "NULL"), ("NULL", " NULL "), ("-1", -1), ("-1", -1.0), ("NaN", float("nan"))]
)
def test_a_marker_is_no_unit(marker: str, value: Any) -> None:
    data = msgspec.structs.replace(at_random(0.25, 0.25, 1, "user"), missing=(marker,))
    users = {True: pl.Series("user", [value] * 2000), False: pl.Series("user", [None] * 2000, dtype=pl.String)}
    marked, null = (lines_of(dict(split_rows(log_of(2000).with_columns(users[key]), data))) for key in (True, False))
    assert marked == null


def test_a_unit_that_cannot_be_read_is_reported() -> None:
    users = pl.Series("user", [1.0, float("nan"), 2.0])
    with pytest.raises(ValueError, match=r'file 1, line 2: column "user" is the unit .* got nan: send null'):
        split_rows(log_of(3).with_columns(users), at_random(0.1, 0.1, 1, "user"))
    with pytest.raises(ValueError, match=r'file 1, line 1: column "user" is the unit .* got a list'):
        split_rows(log_of(1).with_columns(pl.Series("user", [[1]])), at_random(0.1, 0.1, 1, "user"))


def test_a_split_by_time_warns_of_hours_that_are_read_as_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    hours = [2026010100 + 100 * day for day in range(28)]
    split_rows(timed(hours), by_time("400s", "400s"))
    assert "The values look like YYYYMMDDHH" in capsys.readouterr().err
