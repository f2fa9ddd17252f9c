"""The experiment of a day: the user's experiment, with [data] limited to the window of the day."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from export.cycle.days import DAY, JOINED, DayFolder, start_of
from model.data.readers.split import seconds_of
from model.data_config import SplitByTime
from model.experiment_config import Experiment, read_experiment
from model.loop.output import HOURS
from model.toml import read_toml
from model.toml_text import toml_document

DAY_S = 86_400
DEFAULT_DAYS = 7
MAX_DAYS = 3650
# Keys of [data] that name files. ctr-cycle sets the first three, and the others have no meaning for a joined log.
FILES = ("folder", "files", "prepared")
OTHERS = ("train", "valid", "test", "vocabulary")


def check_experiment(path: Path, label: str = "click") -> tuple[Experiment, SplitByTime]:
    """Return an experiment that ctr-cycle can run, and its split.

    Args:
        path: The experiment.
        label: The column of the joined log with the clicks.

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
    if data.label != label or data.positive:
        raise ValueError(
            f'{path}: expected label = "{label}" without positive, because ctr-gate compares the predictions with the '
            "clicks of the joined log."
        )
    if data.negative_rate != 1:
        raise ValueError(
            f"{path}: negative_rate = {data.negative_rate} means that non-clicks are missing, but the joined log has "
            "all of them. Remove the key."
        )
    return experiment, data.split


def window_of(days: int | None, split: SplitByTime) -> int:
    """Return how many days the log of a day covers, and check that this leaves rows to train on.

    Args:
        days: What the user asked for, or None for the length of the split. If the split does not limit train, this is
            DEFAULT_DAYS.
        split: The split.

    Raises:
        ValueError: If valid and test are as long as the window, or the window is longer than MAX_DAYS.
    """
    other_s = sum(seconds_of(text) for text in (split.valid, split.test, *[split.gap] * 2) if text)
    if days is None:
        train_s = seconds_of(split.train) if split.train else 0
        days = min(-(-(train_s + other_s) // DAY_S), MAX_DAYS) if train_s else DEFAULT_DAYS
    if days > MAX_DAYS:
        raise ValueError(f"a window of {days} days is too long. Set --window to at most {MAX_DAYS}d.")
    if days * DAY_S <= other_s:
        raise ValueError(
            f"a window of {days} days is not longer than valid and test of the split together. Set a longer --window "
            "or shorter durations in the experiment."
        )
    return days


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


def held_out_since(day: date, split: SplitByTime) -> datetime:
    """Return the first moment from which all rows up to the end of a day are in its test split.

    No model was trained on these rows: the new one keeps them for test, and the served one is older.

    Args:
        day: The day.
        split: The split, which counts back from the newest row, at or before the end of the day.
    """
    return start_of(day + DAY) - timedelta(seconds=seconds_of(split.test))
