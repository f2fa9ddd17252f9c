"""The names of log files. The request log and the event log are folders of NDJSON files, called segments.

A segment's name ends in `.ndjson.part` while a process writes it, in `.ndjson` when it is complete, and in
`.ndjson.shipped` after you have copied it to another place and renamed it. Names begin with the kind and the time, so
they sort by time.
"""

from pathlib import Path

UNFINISHED, FINISHED, SHIPPED = ".ndjson.part", ".ndjson", ".ndjson.shipped"
REQUESTS, EVENTS = "requests", "events"


def unfinished_files(folder: Path) -> list[Path]:
    """Return the files that a process is writing, or left behind when it died."""
    return sorted(folder.glob(f"*{UNFINISHED}"))


def finished_files(folder: Path) -> list[Path]:
    """Return the complete files, shipped or not, oldest first."""
    return sorted((*folder.glob(f"*{FINISHED}"), *folder.glob(f"*{SHIPPED}")))
