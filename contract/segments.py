"""The names of log files. The request log and the event log are folders of NDJSON files, called segments.

A segment's name ends in `.ndjson.part` while a process writes it, in `.ndjson` when it is complete, and in
`.ndjson.shipped` after you have copied it to another place and renamed it. Names begin with the kind and the time, so
they sort by time.
"""

import os
from pathlib import Path
from typing import IO

UNFINISHED, FINISHED, SHIPPED = ".ndjson.part", ".ndjson", ".ndjson.shipped"
REQUESTS, EVENTS = "requests", "events"


def unfinished_files(folder: Path) -> list[Path]:
    """Return the files that a process is writing, or left behind when it died."""
    return sorted(folder.glob(f"*{UNFINISHED}"))


def finished_files(folder: Path) -> list[Path]:
    """Return the complete files, shipped or not, oldest first."""
    return sorted((*folder.glob(f"*{FINISHED}"), *folder.glob(f"*{SHIPPED}")))


def finished_name(unfinished: Path) -> Path:
    """Return the path of a file after it is complete."""
    return unfinished.with_name(unfinished.name.removesuffix(UNFINISHED) + FINISHED)


def shipped_name(finished: Path) -> Path:
    """Return the path of a complete file after it is shipped."""
    return finished.with_name(finished.name.removesuffix(FINISHED) + SHIPPED)


def is_at(path: Path, file: IO[bytes]) -> bool:
    """Return whether an open file is still at its path: the file may be gone, or its folder may have moved."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk.

    Without the second, a power failure may remove a file whose content is on the disk.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
