"""Read the files of a request log line by line, in every version of the format.

Format 1 was written before version 0.11. Its lines have no "format", and their probabilities are in one list beside the
candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from contract.request_log import FORMAT, LoggedCandidate, LogLine
from contract.segments import finished_files, shipped_name

FIRST_FORMAT = 1


class FirstFormatCandidate(msgspec.Struct):
    id: str | int | None
    features: dict[str, Any]


class FirstFormatLine(msgspec.Struct):
    """A line of format 1. See LogLine for the meaning of its attributes."""

    time: str
    request_id: str
    model: str
    version: str
    context: dict[str, Any]
    candidates: list[FirstFormatCandidate]
    ctr: list[float | None]
    degraded: list[str]
    hashed: list[str]


class Header(msgspec.Struct):
    format: int = FIRST_FORMAT


HEADER = msgspec.json.Decoder(Header)
LINE = msgspec.json.Decoder(LogLine)
FIRST_FORMAT_LINE = msgspec.json.Decoder(FirstFormatLine)


class NewerFormat(ValueError):
    """A line has a newer format than this version can read."""


@dataclass
class Skipped:
    """What read_lines() skipped.

    Attributes:
        unreadable: Lines that are truncated, or not from a request log.
        newer: Lines in a newer format, which a newer version of this software can read.
        files: Files that were deleted before they could be read.
    """

    unreadable: int = 0
    newer: int = 0
    files: int = 0


def read_lines(paths: Sequence[Path], skipped: Skipped) -> Iterator[LogLine]:
    """Yield the lines of log files. The memory does not depend on the size of the files.

    Args:
        paths: Files, and folders whose complete files are read, shipped or not.
        skipped: Counts what cannot be read.

    Raises:
        OSError: A file cannot be opened. A file of a folder that was deleted meanwhile is skipped instead.
    """
    for path in paths:
        if not path.is_dir():
            yield from read_file(path, skipped)
            continue
        for listed in finished_files(path):
            if (file := current_name(listed)) is None:
                skipped.files += 1
            else:
                yield from read_file(file, skipped)


def current_name(listed: Path) -> Path | None:
    """Return a file's name after it may have been renamed as shipped, or None if it was deleted."""
    return next((path for path in (listed, shipped_name(listed)) if path.exists()), None)


def read_file(path: Path, skipped: Skipped) -> Iterator[LogLine]:
    """Yield the lines of a file. Raises OSError if it cannot be opened."""
    with path.open("rb") as file:
        for raw in file:
            try:
                yield decode_line(raw)
            except NewerFormat:
                skipped.newer += 1
            except (ValueError, RecursionError):  # msgspec.DecodeError is a ValueError.
                skipped.unreadable += 1


def decode_line(raw: bytes) -> LogLine:
    """Return a line of a request log. A line of format 1 has an empty score_id.

    Raises:
        NewerFormat: The line has a newer format.
        ValueError, RecursionError: The line is truncated, or not from a request log.
    """
    try:
        latest = LINE.decode(raw)
    except (ValueError, RecursionError):  # another format, unless its header says otherwise
        found = HEADER.decode(raw).format
        if found == FORMAT:
            raise
    else:
        found = latest.format
        if found == FORMAT:
            return latest
    if found > FORMAT:
        raise NewerFormat(
            f"the line has format {found}; this version reads formats up to {FORMAT}. Use the version that wrote it."
        )
    line = FIRST_FORMAT_LINE.decode(raw)
    return LogLine(
        format=FIRST_FORMAT,
        time=line.time,
        score_id="",
        request_id=line.request_id,
        model=line.model,
        version=line.version,
        context=line.context,
        candidates=[
            LoggedCandidate(position, candidate.id, candidate.features, ctr)
            for position, (candidate, ctr) in enumerate(zip(line.candidates, line.ctr, strict=True))
        ],
        candidate_count=len(line.candidates),
        degraded=line.degraded,
        hashed=line.hashed,
    )
