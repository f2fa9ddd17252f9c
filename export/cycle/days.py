"""Days in UTC, when their last hour is final, and the folders of a working folder."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import msgspec

from model.data.readers.split import iso
from model.loop.match import HOUR_MS, Rules
from model.loop.output import HOURS, REPORT

DAY = timedelta(days=1)
DAYS, JOINED = "days", "joined"
NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class NotFinal(ValueError):
    """Events may still arrive for the day. The message says when the day is final."""


@dataclass(frozen=True)
class DayFolder:
    """The folder of a day in a working folder.

    Attributes:
        work: The working folder.
        day: The day.
    """

    work: Path
    day: date

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return self.work / DAYS / self.day.isoformat()

    @property
    def experiment(self) -> Path:
        """The experiment that was used, limited to the window of the day."""
        return self.folder / "experiment.toml"

    @property
    def prepared(self) -> Path:
        """The prepared log."""
        return self.folder / "prepared"

    @property
    def scored(self) -> Path:
        """The predictions of the served version for the day."""
        return self.folder / "scored.parquet"

    @property
    def run(self) -> Path:
        """The trained model."""
        return self.folder / "run"

    @property
    def bundle(self) -> Path:
        """The exported model."""
        return self.folder / "bundle"

    @property
    def gate(self) -> Path:
        """The report of ctr-gate."""
        return self.folder / "gate" / "gate.json"

    @property
    def state(self) -> Path:
        """Which steps are complete."""
        return self.folder / "state.json"

    @property
    def report(self) -> Path:
        """The report of the day. It is written last."""
        return self.folder / "cycle.json"

    @property
    def text(self) -> Path:
        """The report for people."""
        return self.folder / "cycle.md"

    def log(self, step: str) -> Path:
        """The output of a step."""
        return self.folder / f"{step}.log"


def all_days(work: Path) -> list[DayFolder]:
    """Return the folders of all days, newest first. Other files and folders are left out."""
    days = []
    for path in (work / DAYS).iterdir():
        with suppress(ValueError):  # a name such as 2026-02-30
            if NAME.fullmatch(path.name) and path.is_dir():
                days.append(date.fromisoformat(path.name))
    return [DayFolder(work, day) for day in sorted(days, reverse=True)]


def earlier_days(folder: DayFolder) -> list[DayFolder]:
    """Return the folders of the earlier days, newest first."""
    return [other for other in all_days(folder.work) if other.day < folder.day]


def hour_files(joined: Path, first: date, last: date) -> list[Path]:
    """Return the files of the hours from one day to another, in ascending order."""
    files = sorted((joined / HOURS).glob("*.parquet"))
    return [path for path in files if first.isoformat() <= path.name[:10] <= last.isoformat()]


def newest_final_day(now: datetime, click_window_s: int, lateness_s: int) -> date:
    """Return the newest day that is final if all events before `now` have been collected."""
    return (now.astimezone(UTC) - timedelta(seconds=click_window_s + lateness_s)).date() - DAY


def check_is_final(day: date, joined: Path) -> None:
    """Check that the last hour of a day is final in a joined log, by the rules of ctr-join.

    Args:
        day: The day.
        joined: A joined log that ctr-join has just updated.

    Raises:
        NotFinal: If it is not. The message states when the hour is final, and how far the inputs reach.
    """
    report = msgspec.json.decode((joined / REPORT).read_bytes())
    rules = Rules(report["window_s"] * 1000, report["lateness_s"] * 1000, report["watermark_ms"])
    last_ms = round(start_of(day + DAY).timestamp() * 1000) - HOUR_MS
    if rules.is_final(last_ms):
        return
    unfinished = report["unfinished_segments"]
    also = (
        f" {unfinished} files are still being written, so the inputs count only up to a minute before the oldest of "
        "them was opened."
        if unfinished
        else ""
    )
    raise NotFinal(
        f"{day} is not final. Its last hour is final once the inputs reach {iso(rules.deadline(last_ms) // 1000)}, "
        f"because a click may happen {rules.window_ms // 1000:,} s after its impression and arrive "
        f"{rules.lateness_ms // 1000:,} s after that. The inputs reach {iso(rules.watermark_ms // 1000)}.{also} "
        "Run the command again later, or set --until if all events have arrived."
    )


def check_has_rows(day: date, files: Sequence[Path], joined: Path) -> None:
    """Raise ValueError if none of the files belongs to the day."""
    if not any(path.name.startswith(day.isoformat()) for path in files):
        raise ValueError(
            f"{joined / HOURS} has no file of {day}: no impression of that day was joined. See {joined / REPORT}."
        )


def start_of(day: date) -> datetime:
    """Return the beginning of a day."""
    return datetime.combine(day, time(), UTC)
