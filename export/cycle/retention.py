"""Remove the large folders of old days. Their reports, logs and experiments stay."""

import shutil
from pathlib import Path

from export.cycle.days import DayFolder, earlier_days

REMOVED = ".removed-"


def remove_old(folder: DayFolder, keep: int, needed: DayFolder | None) -> list[Path]:
    """Remove the prepared logs, runs, bundles and predictions of all days but the newest ones. Return their paths.

    Args:
        folder: The newest day.
        keep: How many days to keep, including this one.
        needed: The day whose run the next training continues. Its run and bundle are kept.
    """
    removed = []
    for day in earlier_days(folder)[keep - 1 :]:
        is_needed = needed is not None and day.day == needed.day
        paths = [day.prepared, day.scored, *([] if is_needed else [day.run, day.bundle])]
        remove_hidden(day)  # of a process that was killed
        for path in filter(Path.exists, paths):
            # A folder that is being removed must not look like a run, even if this process is killed.
            path.rename(path.with_name(f"{REMOVED}{path.name}"))
            removed.append(path)
        remove_hidden(day)
    return removed


def remove_hidden(day: DayFolder) -> None:
    """Remove what has been renamed for its removal."""
    for hidden in list(day.folder.glob(f"{REMOVED}*")):
        remove(hidden)


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
