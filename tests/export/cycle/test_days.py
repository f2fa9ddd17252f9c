"""Days, when they are final, and the experiment of a day."""

import argparse
import json
import tomllib
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from export.cli.cycle import day, main, parse_arguments, to_settings
from export.cycle.days import DayFolder, NotFinal, check_is_final, earlier_days, hour_files, newest_final_day
from export.cycle.experiment import check_experiment, day_toml, held_out_since, window_of
from model.data_config import SplitByTime
from tests.support.days import EXPERIMENT

DAY = date(2026, 11, 30)
WINDOW_S, LATENESS_S = 1800, 86_400
FINAL = datetime(2026, 12, 2, 0, 30, tzinfo=UTC)
BY_TIME = 'split = { by = "time", valid = "8h", test = "20h" }\ntime = "time"'
SPLIT = SplitByTime(valid="12h", test="6h")


def write_join_report(joined: Path, watermark: datetime, unfinished: int = 0) -> None:
    joined.mkdir(exist_ok=True)
    report = {"window_s": WINDOW_S, "lateness_s": LATENESS_S, "unfinished_segments": unfinished}
    report["watermark_ms"] = round(watermark.timestamp() * 1000)
    (joined / "join.json").write_text(json.dumps(report))


def test_a_day_is_final_when_its_last_hour_is(tmp_path: Path) -> None:
    write_join_report(tmp_path, FINAL)
    check_is_final(DAY, tmp_path)
    write_join_report(tmp_path, FINAL - timedelta(milliseconds=1), unfinished=2)
    with pytest.raises(NotFinal, match=r"2026-12-02T00:30:00Z.* reach 2026-12-02T00:29:59Z. 2 files are still being"):
        check_is_final(DAY, tmp_path)


@pytest.mark.parametrize(("before", "newest"), [(0, DAY), (1, DAY - timedelta(days=1))])
def test_the_default_day_is_the_newest_final_one(before: int, newest: date) -> None:
    assert newest_final_day(FINAL - timedelta(seconds=before), WINDOW_S, LATENESS_S) == newest


def test_a_window_contains_the_hours_of_its_days(tmp_path: Path) -> None:
    names = ["2026-11-27T23", "2026-11-28T00", "2026-11-30T23", "2026-12-01T00"]
    (tmp_path / "hours").mkdir()
    for name in names:
        (tmp_path / "hours" / f"{name}.parquet").touch()
    assert [path.stem for path in hour_files(tmp_path, date(2026, 11, 28), DAY)] == names[1:3]


def test_earlier_days_are_newest_first(tmp_path: Path) -> None:
    for name in ("2026-11-29", "2026-12-01", "2026-11-05", "2026-11-30", "2026-02-30", "notes"):
        (tmp_path / "days" / name).mkdir(parents=True)
    (tmp_path / "days" / "2026-11-03").touch()
    assert [folder.day.day for folder in earlier_days(DayFolder(tmp_path, DAY))] == [29, 5]


def test_the_experiment_of_a_day_is_limited_to_its_window(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(EXPERIMENT)
    hours = [tmp_path / "joined/hours" / f"2026-11-{day}T{hour:02}.parquet" for day in (29, 30) for hour in (7, 8)]
    document = tomllib.loads(day_toml(path, DayFolder(tmp_path, DAY), hours))
    data = document.pop("data")
    assert data["files"] == ["hours/2026-11-29T*.parquet", "hours/2026-11-30T*.parquet"]
    assert (data["folder"], data["prepared"]) == ("joined", "days/2026-11-30/prepared")
    original = tomllib.loads(EXPERIMENT)
    assert document == {key: value for key, value in original.items() if key != "data"}
    assert original["data"] | data == data


def test_the_gate_compares_rows_of_the_test_split() -> None:
    assert held_out_since(DAY, SPLIT) == datetime(2026, 11, 30, 18, tzinfo=UTC)


@pytest.mark.parametrize(("train", "days"), [(None, 7), ("30h", 2), ("31h", 3), ("14d", 15), ("9999999d", 3650)])
def test_the_default_window_is_the_length_of_the_split(train: str | None, days: int) -> None:
    assert window_of(None, SplitByTime(train=train, valid="12h", test="6h")) == days


def test_a_window_must_leave_rows_to_train_on() -> None:
    assert window_of(1, SPLIT) == 1
    with pytest.raises(ValueError, match="a window of 3651 days is too long"):
        window_of(3651, SPLIT)
    with pytest.raises(ValueError, match="a window of 1 days is not longer than valid and test"):
        window_of(1, SplitByTime(valid="12h", test="6h", gap="3h"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (BY_TIME, 'split = { by = "random", valid = 0.1, test = 0.1 }', "later rows"),
        ('label = "click"', 'label = "click"\nnegative_rate = 0.1', "negative_rate = 0.1 means"),
        ('label = "click"', 'label = "click"\nvocabulary = "v"', "remove vocabulary"),
        ('label = "click"', 'label = "conversions"', 'expected label = "click" without positive'),
        ('label = "click"', 'label = "click"\npositive = ["1"]', 'expected label = "click" without positive'),
        ("epochs = 2", "epoch = 2", "epochs"),
    ],
)
def test_an_experiment_that_does_not_read_a_joined_log_is_an_error(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(EXPERIMENT.replace(old, new))
    with pytest.raises(ValueError, match=message):
        check_experiment(path)


def test_the_label_is_the_click_of_the_joined_log_under_its_new_name(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(EXPERIMENT.replace('label = "click"', 'label = "clicked"'))
    words = ["shop.toml", "--requests", "r", "--events", "e", "--store", "s", "--out", "w", "--rename"]
    settings = to_settings(parse_arguments([*words, "click=clicked", "--rename", "position=place"]))
    assert check_experiment(path, settings.label)[0].data.label == "clicked"
    other = to_settings(parse_arguments([*words, "context.click=clicked"]))
    with pytest.raises(ValueError, match='expected label = "click"'):
        check_experiment(path, other.label)


@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31", "2026-02-30"])
def test_dates_without_neighbors_are_not_days(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a date"):
        day(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--until", "0001-01-01T00:00:00Z"], "--until 0001-01-01T00:00:00Z: expected a time after 1971"),
        (["--out", "requests"], "/requests: this is also the folder of --requests"),
        (["--out", "store"], "/store: this is also the folder of --store"),
        (["--out", "shop.toml"], "/shop.toml: this is not a folder"),
    ],
)
def test_impossible_arguments_are_errors(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.toml").write_text(EXPERIMENT)
    (tmp_path / "requests").mkdir()
    arguments = ["--requests", "requests", "--events", "events", "--store", "store", "--out", "work"]
    assert main(["shop.toml", *arguments, *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests", "shop.toml"]
    assert list((tmp_path / "requests").iterdir()) == []
