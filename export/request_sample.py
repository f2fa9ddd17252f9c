"""A sample of the requests in the newest 24 hours of a request log. Its size does not depend on that of the log."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from contract.request_log import SCORED, LoggedCandidate, LogLine
from contract.request_log_reader import NewerFormat, Skipped, current_name, decode_line
from contract.schema import FeatureSchema
from contract.segments import REQUESTS
from contract.system_errors import describe
from export.reference import MAX_ROWS, MIN_REQUESTS
from model.loop.inputs import find_segments
from model.loop.lines import milliseconds

DAY_MS = 24 * 60 * 60 * 1000
MAX_REQUESTS = 5_000  # at least half of them if the log has more. Noise gives the context fields a PSI below 0.004.
MAX_CANDIDATES = MAX_ROWS // MAX_REQUESTS  # of a request


class Header(msgspec.Struct):
    """The part of a line that decides whether it is in the window. Decoding it is much faster than the whole line."""

    time: str
    outcome: str = SCORED


_header = msgspec.json.Decoder(Header).decode


@dataclass
class RequestSample:
    """The sampled requests.

    Attributes:
        paths: The folders and files of the log.
        since_ms: The start of the window, in milliseconds since 1970.
        until_ms: The first moment after it.
        total: The number of scored requests in the window.
        lines: Some of them, evenly spread. The `inclusion` of a candidate includes its chance to be in this sample.
        skipped: What could not be read.
        problem: Why no reference can be measured on them, or None.
    """

    paths: Sequence[Path]
    since_ms: int = 0
    until_ms: int = 0
    total: int = 0
    lines: list[LogLine] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    problem: str | None = None

    @property
    def period(self) -> str:
        """The window as text."""
        start, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (self.since_ms, self.until_ms))
        return f"{start:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ}"

    def __str__(self) -> str:
        return f"the request log in {', '.join(map(str, self.paths))}"


def sample_requests(paths: Sequence[Path], until_ms: int | None, schema: FeatureSchema) -> RequestSample:
    """Return a sample of the finished files of a request log. The same files give the same sample.

    Args:
        paths: Folders of the request log, or its files.
        until_ms: The first moment after the window. None for the end of the log.
        schema: The model's fields, which must not be hashed in the log.

    Raises:
        ValueError: A path does not exist, or a folder has no segments.
    """
    sample = RequestSample(paths)
    try:
        for path in filter(Path.is_dir, paths):
            next(path.iterdir(), None)  # find_segments() takes an unreadable folder for an empty one.
        files = [segment.path for segment in find_segments(paths).segments if segment.kind == REQUESTS]
        _read(sample, files, until_ms)
    except OSError as error:
        sample.problem = f"{sample} cannot be read: {describe(error)}"
        return sample
    names = {one.reads for one in schema.fields}
    hashed = sorted({name for line in sample.lines for name in line.hashed or () if name in names})
    if hashed:
        sample.problem = f"{sample} has hashed values of {hashed[0]}, which the model does not know"
    elif sample.total < MIN_REQUESTS:
        sample.problem = (
            f"{sample} has {sample.total:,} scored requests in its last 24 hours; expected at least {MIN_REQUESTS}"
        )
    return sample


def _read(sample: RequestSample, files: Sequence[Path], until_ms: int | None) -> None:
    if until_ms is None:
        newest = max((time_ms for time_ms, _ in _scored(files, Skipped())), default=0)
        until_ms = newest + 1
    sample.since_ms, sample.until_ms = until_ms - DAY_MS, until_ms
    step = 1  # Every step-th request is kept. The step doubles whenever too many are kept.
    kept: dict[int, LogLine] = {}
    for time_ms, raw in _scored(files, sample.skipped):
        if not sample.since_ms <= time_ms < until_ms:
            continue
        number = sample.total
        sample.total += 1
        if number % step == 0 and (line := _decode(raw, sample.skipped)) is not None and line.candidates:
            kept[number] = msgspec.structs.replace(line, candidates=_some(line.candidates, number))
            if len(kept) > MAX_REQUESTS:
                step *= 2
                kept = {number: line for number, line in kept.items() if number % step == 0}
    sample.lines = list(kept.values())


def _scored(files: Sequence[Path], skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    """Yield the time and the line of each request that was scored."""
    for listed in files:
        if (path := current_name(listed)) is None:
            skipped.files += 1
            continue
        with path.open("rb") as file:
            for raw in file:
                try:
                    header = _header(raw)
                    time_ms = milliseconds(header.time)
                except (ValueError, RecursionError):
                    skipped.unreadable += 1
                    continue
                if header.outcome == SCORED:
                    yield time_ms, raw


def _decode(raw: bytes, skipped: Skipped) -> LogLine | None:
    try:
        line = decode_line(raw)
    except NewerFormat:
        skipped.newer += 1
        return None
    except (ValueError, RecursionError):
        skipped.unreadable += 1
        return None
    if not all(0 < candidate.inclusion <= 1 for candidate in line.candidates or ()):
        skipped.unreadable += 1
        return None
    return line


def _some(candidates: Sequence[LoggedCandidate], number: int) -> list[LoggedCandidate]:
    """Return at most MAX_CANDIDATES candidates of a request, chosen at random but always the same ones.

    Candidates that the server left out because their id is invalid are not among them.
    """
    usable = [candidate for candidate in candidates if candidate.id is not None]
    if len(usable) <= MAX_CANDIDATES:
        return usable
    share = MAX_CANDIDATES / len(usable)
    chosen = random.Random(number).sample(usable, MAX_CANDIDATES)  # noqa: S311  # sampling needs no secure random numbers
    return [msgspec.structs.replace(one, inclusion=one.inclusion * share) for one in chosen]
