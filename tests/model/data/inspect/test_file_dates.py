"""ctr-inspect splits a log whose files have dates in their names: the last file is test, the one before it valid."""

import tempfile
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cli import prepare
from model.cli.inspect import main
from model.data.inspect.file_dates import date_in, split_by_date
from model.data.inspect.inspect import inspect_log
from model.data.readers.files import find_files
from model.data_config import SplitByTime, read_data
from tests.model.data.inspect.test_inspect import clicks

NEW_YEAR = date(2026, 1, 1)


def files(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Create empty files and return their split."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return split_by_date(folder, find_files(folder, ["."], ""))


def test_daily_files_become_train_valid_and_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = clicks(3000).drop("shown_at")
    (tmp_path / "logs").mkdir()
    for number in range(12):
        name = f"log-{NEW_YEAR + timedelta(number)}.tsv"
        log[number * 250 : number * 250 + 250].write_csv(tmp_path / "logs" / name, separator="\t")
    toml = tmp_path / "shop.toml"
    assert main([str(tmp_path / "logs"), "--data", str(tmp_path), "--out", str(toml)]) == 0
    data = read_data(toml)
    assert (data.train, data.valid, data.test) == (
        ("logs/log-2026-01-0*.tsv", "logs/log-2026-01-10.tsv"),
        "logs/log-2026-01-11.tsv",
        "logs/log-2026-01-12.tsv",
    )
    assert (
        "# UNSURE: split by the dates in the names; the last date is test, the date before it valid" in toml.read_text()
    )
    assert prepare.main([str(toml), "--data", str(tmp_path)]) == 0
    assert "2,500" in capsys.readouterr().out


def test_partition_folders_with_a_time_are_still_split_by_time(tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / "logs" / f"day={NEW_YEAR + timedelta(number)}"
        folder.mkdir(parents=True)
        clicks().drop("shown_at")[number * 100 : number * 100 + 100].write_parquet(folder / "part-0.parquet")
    toml = tmp_path / "shop.toml"
    assert main([str(tmp_path / "logs"), "--data", str(tmp_path), "--out", str(toml)]) == 0
    data = read_data(toml)
    assert (data.time, data.split) == ("day", SplitByTime(valid="1d", test="1d"))


def test_a_partition_column_with_the_date_is_marked_because_test_has_no_date_of_train(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / f"dt={NEW_YEAR + timedelta(number):%Y%m%d}"
        folder.mkdir()
        clicks().drop("shown_at")[number * 100 : number * 100 + 100].write_parquet(folder / "part-0.parquet")
    found = inspect_log([str(tmp_path)], tmp_path.parent, "shop")
    assert [name for name, each in found.found.columns.items() if "does not occur in train" in each.unsure] == ["dt"]
    assert "UNSURE: the date of a row in test does not occur in train; remove the field" in found.experiment()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["01-2026-01-03.csv", "02-2026-01-02.csv", "03-2026-01-01.csv"], ["03-2026-01-01.csv", "02-*", "01-*"]),
        (["20260101.csv", "20260102.csv", "20260103.csv"], ["20260101.csv", "20260102.csv", "20260103.csv"]),
        (
            ["dt=20260101/a.csv", "dt=20260102/a.csv", "dt=20260103/a.csv"],
            ["dt=20260101", "dt=20260102", "dt=20260103"],
        ),
        (
            [f"year=2026/month=1/day={day}/a.csv" for day in (9, 10, 11)],
            [f"year=2026/month=1/day={day}" for day in (9, 10, 11)],
        ),
    ],
)
def test_names_are_sorted_by_date(tmp_path: Path, names: list[str], splits: list[str]) -> None:
    found = files(tmp_path, names)
    assert list(found) == ["train", "valid", "test"]
    for patterns, split in zip(found.values(), splits, strict=True):
        assert find_files(tmp_path, patterns, "") == find_files(tmp_path, [split], "")


def test_a_month_of_files_needs_one_short_glob(tmp_path: Path) -> None:
    names = [f"{NEW_YEAR + timedelta(number)}.tsv.gz" for number in range(31)]
    assert files(tmp_path, names)["train"] == ("2026-01-[0-2]*.tsv.gz",)


@pytest.mark.parametrize(
    "names",
    [
        ["2026-01-01.csv", "2026-01-02.csv"],
        ["2026-01-01.csv", "2026-01-02.csv", "2026-01-03.csv", "other.csv"],
        ["2026-01-01-a.csv", "2026-01-01-b.csv", "2026-01-02.csv"],
        ["part-00001.csv", "part-00002.csv", "part-00003.csv"],
    ],
)
def test_files_without_three_dates_are_not_split(tmp_path: Path, names: list[str]) -> None:
    assert files(tmp_path, names) == {}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("log_2026_01_31.csv", date(2026, 1, 31)),
        ("2026/01/31/part-0.csv", date(2026, 1, 31)),
        ("day=2026-01-31/part-20260201.csv", date(2026, 1, 31)),
        ("20260231.csv", None),
        ("2026-13-01.csv", None),
        ("120260131.csv", None),
        ("2026013100.csv", None),
        ("part-00000-3f1c.csv", None),
    ],
)
def test_a_date_is_recognized_in_a_name(name: str, found: date | None) -> None:
    mark = date_in(name)
    assert (mark and mark[0]) == found


@settings(max_examples=40, deadline=None)
@given(
    days=st.lists(st.integers(0, 800), min_size=3, max_size=60, unique=True),
    template=st.sampled_from(["{}.csv", "a[b]{}*.csv.gz", "day={}/x.csv", "{:%Y/%m/%d}/x.csv", "{:%Y%m%d}-0.csv"]),
    parts=st.integers(1, 2),
)
def test_the_patterns_name_exactly_the_files_of_their_dates(days: list[int], template: str, parts: int) -> None:
    dates = [NEW_YEAR + timedelta(day) for day in sorted(days)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = {day: [f"{part}/{template.format(day)}" for part in range(parts)] for day in dates}
        splits = files(folder, [path for paths in names.values() for path in paths])
        groups = {"train": dates[:-2], "valid": dates[-2:-1], "test": dates[-1:]}
        assert {split: [source.path for source in find_files(folder, splits[split], "")] for split in groups} == {
            split: sorted(folder / path for day in group for path in names[day]) for split, group in groups.items()
        }
