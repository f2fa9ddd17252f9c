"""The segments that a join reads, and their lines, partitioned by the time of the answer.

A day of logs does not have to fit into memory, because only the lines of one partition are in memory at a time. All
lines and events of an answer are in the same partition, because its score id contains the time.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from contract.request_log_reader import current_name
from contract.segments import EVENTS, FINISHED, REQUESTS, SHIPPED, UNFINISHED, finished_files, unfinished_files
from model.loop.lines import BadLineError, answer_ms, milliseconds, parse_event, parse_request

PARTITION_MS = 5 * 60 * 1000
MAX_PARTITIONS = 2**14  # so that events with invented score ids cannot fill the disk with small files; 57 days
MAX_WRITE_MS = 60_000  # ctr-collect receives an event at most this long before it opens the segment for it
MAX_BUFFER_BYTES = 32 * 2**20
MAX_EXAMPLES = 3  # of each problem
KINDS = (REQUESTS, EVENTS)
OPENED = re.compile(r"-([0-9]{8}T[0-9]{6}\.[0-9]{6})-")


@dataclass
class Segment:
    """A finished segment.

    Attributes:
        path: The file.
        kind: REQUESTS or EVENTS.
        newest_ms: The latest time in the file: of a request, of an event, or at which an event was received.
        problems: The number of lines that cannot be joined.
    """

    path: Path
    kind: str
    newest_ms: int = 0
    problems: int = 0


@dataclass
class Inputs:
    """What was read.

    Attributes:
        segments: The finished segments.
        unfinished: The segments that were not read, because they are not finished.
        lines: The number of lines of each kind, in all files.
        examples: The first lines of each kind with each problem, as "file:line: reason".
        received_ms: The latest time at which an event was received or a request was answered.
        unfinished_ms: When the first unfinished segment was opened, or None if there is none.
    """

    segments: list[Segment]
    unfinished: list[Path]
    lines: Counter[str] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    received_ms: int = 0
    unfinished_ms: int | None = None

    @property
    def watermark_ms(self) -> int:
        """The time before which all events are in the inputs, as far as the names and contents of the files show."""
        if self.unfinished_ms is None:
            return self.received_ms
        return min(self.received_ms, self.unfinished_ms - MAX_WRITE_MS)


class Partitions:
    """Files with the lines of each partition, in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffers: dict[str, list[bytes]] = {}
        self._bytes = 0

    def add(self, kind: str, partition: str, line: bytes) -> None:
        """Add a line without its line break."""
        self._buffers.setdefault(f"{kind}-{partition}", []).append(line)
        self._bytes += len(line)
        if self._bytes >= MAX_BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the lines that are in memory."""
        for name, lines in self._buffers.items():
            with (self._folder / name).open("ab") as file:
                file.writelines(line + b"\n" for line in lines)
        self._buffers.clear()
        self._bytes = 0

    def names(self) -> list[str]:
        """Return the partitions that have lines, sorted."""
        return sorted({path.name.split("-", 1)[1] for path in self._folder.iterdir()})

    def read(self, kind: str, partition: str) -> list[bytes]:
        """Return the distinct lines of a partition, sorted, so that their order in the inputs has no effect."""
        path = self._folder / f"{kind}-{partition}"
        return sorted(set(path.read_bytes().split(b"\n")[:-1])) if path.exists() else []


def find_segments(paths: Sequence[Path]) -> Inputs:
    """Return the segments in folders, or at the paths of files. The beginning of a file's name states its kind.

    Raises:
        ValueError: If a path does not exist, a folder has no segments, a segment is not a file, or a name does not
            state the kind.
    """
    segments: dict[Path, Segment] = {}
    unfinished: set[Path] = set()
    for path in paths:
        if path.is_dir():
            # In this order, because a segment that is finished meanwhile must be in one of the lists.
            open_files = unfinished_files(path)
            found = finished_files(path)
        elif path.exists():
            found = [path] if path.name.endswith((FINISHED, SHIPPED)) else []
            open_files = [path] if path.name.endswith(UNFINISHED) else []
        else:
            raise ValueError(f"{path}: no such file or folder. Name the folders of the request log and of the events.")
        if not found and not open_files:
            raise ValueError(f"{path}: no segments. Their names end with {FINISHED}, {SHIPPED} or {UNFINISHED}.")
        for file in found:
            if file.exists() and not file.is_file():  # Reading a pipe would wait forever.
                raise ValueError(f"{file} is not a file. Move it away.")
            segments.setdefault(file.resolve(), Segment(file, kind_of(file)))
        unfinished.update(file for file in open_files if kind_of(file))
    inputs = Inputs(list(segments.values()), sorted(unfinished))
    inputs.unfinished_ms = min(filter(None, map(opened_ms, unfinished)), default=None)
    return inputs


def kind_of(path: Path) -> str:
    """Return the kind of a segment: REQUESTS or EVENTS.

    Raises:
        ValueError: If the name does not state the kind.
    """
    for kind in KINDS:
        if path.name.startswith(f"{kind}-"):
            return kind
    raise ValueError(
        f'{path}: the name of a segment begins with "{REQUESTS}-" or "{EVENTS}-". Rename the file, or move it away. To '
        "keep the segments of several servers apart, use one folder for each server."
    )


def opened_ms(path: Path) -> int | None:
    """Return when a segment was opened, in milliseconds since 1970, or None if its name does not state it."""
    match = OPENED.search(path.name)
    if match is None:
        return None
    opened = datetime.strptime(match[1], "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
    return int(opened.timestamp() * 1000)


def partition(inputs: Inputs, folder: Path) -> Partitions:
    """Read all segments, and write their lines to partitions in a temporary folder. Fills in the counts of `inputs`."""
    partitions = Partitions(folder)
    times_of = {REQUESTS: _request_times, EVENTS: _event_times}
    for segment in inputs.segments:
        segment.path = current_name(segment.path) or segment.path  # A process may have renamed the file as shipped.
        for number, line in _read_lines(segment.path):
            inputs.lines[segment.kind] += 1
            name = _partition_of(segment, inputs, number, line, times_of[segment.kind])
            partitions.add(segment.kind, name, line)
    partitions.flush()
    return partitions


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, line.removesuffix(b"\n")


def _partition_of(
    segment: Segment, inputs: Inputs, number: int, line: bytes, times_of: Callable[[bytes], tuple[int, int, int]]
) -> str:
    """Return the partition of a line, and update the latest times in the inputs."""
    try:
        answered_ms, newest_ms, received_ms = times_of(line)
    except BadLineError as error:
        segment.problems += 1
        examples = inputs.examples.setdefault((segment.kind, error.problem), [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(f"{segment.path}:{number}: {error}")
        return f"bad-{zlib.crc32(line) % 64:02d}"
    segment.newest_ms = max(segment.newest_ms, newest_ms)
    inputs.received_ms = max(inputs.received_ms, received_ms)
    return f"{answered_ms // PARTITION_MS % MAX_PARTITIONS:05d}"


def _request_times(line: bytes) -> tuple[int, int, int]:
    """Return when a request was answered, and the latest time in its line, twice: as in _event_times()."""
    request = parse_request(line)
    time_ms = milliseconds(request.time)
    return answer_ms(request.score_id), time_ms, time_ms


def _event_times(line: bytes) -> tuple[int, int, int]:
    """Return when an event's request was answered, the latest time in its line, and when the event was received."""
    event = parse_event(line)
    return event.answered_ms, max(event.time_ms, event.received_ms), event.received_ms
