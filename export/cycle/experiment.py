"""The experiment of a day: the user's experiment, with [data] limited to the window of the day."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from export.cycle.days import DAY, JOINED, DayFolder, start_of
from model.data.readers.split import seconds_of
from model.data_config import Data, SplitByTime
from model.experiment_config import Experiment, read_experiment
from model.loop.output import HOURS
from model.toml import read_toml
from model.toml_text import toml_document

MIN_TEST_S = 3600
# Keys of [data] that name files. ctr-cycle sets the first three, and the others have no meaning for a joined log.
FILES = ("folder", "files", "prepared")
OTHERS = ("train", "valid", "test", "vocabulary")


def check_experiment(path: Path) -> tuple[Experiment, SplitByTime]:
    """Return an experiment that ctr-cycle can run, and its split.

    Raises:
        ValueError: If it is not valid, or its [data] section does not describe a joined log. The message says what to
            change.
    """
    experiment = read_experiment(path)
    data = experiment.data
    if data.reader != "table" or not isinstance(data.split, SplitByTime):
        raise ValueError(
            f'{path}: a joined log needs reader = "table", files = ["hours/*.parquet"] and split = {{ by = "time", '
            'valid = "1d", test = "1d" }, because a model is evaluated on later rows than those it was trained on.'
        )
    if set_keys := [key for key in OTHERS if getattr(data, key)]:
        raise ValueError(f"{path}: remove {', '.join(set_keys)}. ctr-cycle reads the hours of the joined log.")
    if data.negative_rate != 1:
        raise ValueError(
            f"{path}: negative_rate = {data.negative_rate} says that non-clicks are missing, but the joined log has "
            "all of them. Remove the key."
        )
    if seconds_of(data.split.test) < MIN_TEST_S:
        raise ValueError(f'{path}: test = "{data.split.test}" is less than an hour. The gate needs at least "1h".')
    return experiment, data.split


def check_window(days: int, split: SplitByTime) -> None:
    """Raise ValueError if a window of this many days leaves no time for train."""
    other_s = sum(seconds_of(text) for text in (split.valid, split.test, *[split.gap] * 2) if text)
    if days * DAY.total_seconds() <= other_s:
        raise ValueError(
            f"--window {days}d is not longer than valid and test of the split together. Set a longer window, or "
            "shorter durations in the experiment."
        )


def day_toml(path: Path, folder: DayFolder, hours: Sequence[Path]) -> str:
    """Return the experiment of a day, with paths relative to the working folder.

    Args:
        path: The user's experiment.
        folder: The day.
        hours: The files of the window.
    """

    def limited(document: dict[str, Any]) -> str:
        days = sorted({file.name[:10] for file in hours})
        data = {key: value for key, value in document["data"].items() if key not in FILES}
        files = {
            "folder": JOINED,
            "files": [f"{HOURS}/{day}T*.parquet" for day in days],
            "prepared": str(folder.prepared.relative_to(folder.work)),
        }
        return f"# Written by ctr-cycle from {path.name}.\n{toml_document(document | {'data': data | files})}"

    return read_toml(path, limited)


def held_out_hours(day: date, data: Data, hours: Sequence[Path]) -> list[Path]:
    """Return the files whose rows are all in the test split of a day: no model up to this day was trained on them.

    Args:
        day: The day.
        data: The [data] section.
        hours: The files of the window.
    """
    assert isinstance(data.split, SplitByTime)
    # The split counts back from the newest row, so it begins at least this long before the end of the day.
    first_s = start_of(day + DAY).timestamp() - seconds_of(data.split.test)
    return [path for path in hours if start_of_hour(path) >= first_s]


def start_of_hour(path: Path) -> float:
    """Return the beginning of the hour that a file of a joined log contains, in seconds since 1970."""
    return start_of(date.fromisoformat(path.name[:10])).timestamp() + 3600 * int(path.name[11:13])
