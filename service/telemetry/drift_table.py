"""The counts of one model version in one process, and the metrics that they become.

A version has hundreds of series. prometheus_client would keep them forever, although a daily model makes each version
obsolete within a day. Here, each process keeps a table for each of its last versions, in a file if there are several
processes. An obsolete table is deleted with its file.
"""

import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from contract.reference import Reference
from service.telemetry.metrics_folder import reserve

# Each bound of ctr_predicted is about twice the previous one, because most CTRs are small.
BOUNDS = (*(digit / 10**power for power in range(5, 0, -1) for digit in (1, 2, 5)), 1.0)
MAX_VERSIONS = 4  # tables of one process. At most two versions are in use at the same time.
SUFFIX = ".drift"
KNOWN, UNKNOWN, MISSING = range(3)  # columns of Table.tokens
WORD_BYTES = 8


class Header(msgspec.Struct, frozen=True):
    """What the counts of a table mean.

    Attributes:
        version: The version of the model.
        reference: Its reference, or None if its bundle has none.
        opened_s: When the table was created, in seconds since 1970. The oldest ones are deleted.
    """

    version: str
    reference: Reference | None
    opened_s: float = 0.0


@dataclass(frozen=True)
class Table:
    """The counts of one version. The arrays may be views of a memory-mapped file.

    Legend: P bins of probabilities, between all bounds of ctr_predicted and all edges of the reference.

    Attributes:
        header: The version and its reference.
        bounds: The upper bounds of all bins of probabilities but the last. Shape: (P - 1).
        total: The sum of the probabilities. Shape: (1).
        requests: The number of requests. Shape: (1).
        predicted: The number of probabilities in each bin. Shape: (P).
        categorical: The categorical fields, in the order of the rows of `tokens`.
        tokens: The number of known, unknown and missing values of each categorical field. Shape: (fields, 3).
        numbers: Numeric field -> number of values in each bin of the reference, and of missing values.
    """

    header: Header
    bounds: NDArray[np.float64]
    total: NDArray[np.float64]
    requests: NDArray[np.int64]
    predicted: NDArray[np.int64]
    categorical: tuple[str, ...]
    tokens: NDArray[np.int64]
    numbers: dict[str, NDArray[np.int64]]

    def add(self, other: "Table") -> None:
        """Add the counts of another table of the same version."""
        self.total[:] += other.total
        self.requests[:] += other.requests
        self.predicted[:] += other.predicted
        self.tokens[:] += other.tokens
        for name, counts in self.numbers.items():
            counts += other.numbers[name]

    def up_to(self, bounds: Iterable[float]) -> list[int]:
        """Return how many probabilities are at most as large as each bound. The bounds must be in `self.bounds`."""
        cumulative = self.predicted.cumsum()
        return [int(count) for count in cumulative[np.searchsorted(self.bounds, list(bounds))]]


def new_table(header: Header, path: Path | None = None) -> Table:
    """Return a table of zeros.

    Args:
        header: The version and its reference.
        path: The file for the counts. If it is None, they are kept in this process's memory.

    Raises:
        NoSpace: There is too little space for the file.
    """
    sizes = part_sizes(header)
    if path is None:
        return table_of(header, np.zeros(sum(sizes), np.int64))
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % WORD_BYTES)
    # The file gets its name when it is complete, because another process may read it at any time.
    new = path.with_suffix(".new")
    new.write_bytes(len(encoded).to_bytes(WORD_BYTES, "little") + encoded)
    size = new.stat().st_size + WORD_BYTES * sum(sizes)
    reserve(new, size)
    with new.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), size)
    new.rename(path)
    return table_of(header, np.frombuffer(memory, np.int64, offset=size - WORD_BYTES * sum(sizes)))


def read_table(path: Path) -> Table:
    """Return a copy of the counts that a process has written to its file so far.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a table.
    """
    raw = path.read_bytes()
    start = WORD_BYTES + int.from_bytes(raw[:WORD_BYTES], "little")
    header = msgspec.json.decode(raw[WORD_BYTES:start], type=Header)
    return table_of(header, np.frombuffer(bytearray(raw[start:]), np.int64))


def all_bounds(header: Header) -> NDArray[np.float64]:
    """Return the bounds of ctr_predicted and the edges of the reference, in ascending order."""
    edges = () if header.reference is None else header.reference.predicted.edges
    return np.unique([*BOUNDS, *edges])


def part_sizes(header: Header) -> list[int]:
    """Return how many words each part of a table has: total, requests, predicted, tokens, and each numeric field."""
    parts = [1, 1, len(all_bounds(header)) + 1]
    if header.reference is None:
        return [*parts, 0]
    numbers = [len(numeric.bins.shares) + 1 for numeric in header.reference.numeric.values()]
    return [*parts, 3 * len(header.reference.categorical), *numbers]


def table_of(header: Header, words: NDArray[np.int64]) -> Table:
    """Return a table whose arrays are views of the words."""
    total, requests, predicted, tokens, *numbers = np.split(words, np.cumsum(part_sizes(header))[:-1])
    reference = header.reference
    return Table(
        header=header,
        bounds=all_bounds(header),
        total=total.view(np.float64),
        requests=requests,
        predicted=predicted,
        categorical=() if reference is None else tuple(reference.categorical),
        tokens=tokens.reshape(-1, 3),
        numbers={} if reference is None else dict(zip(reference.numeric, numbers, strict=True)),
    )


class MergedDrift(Collector):
    """The counts of all processes that keep their tables in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        tables = []
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            with suppress(FileNotFoundError):  # Its process has just deleted the table of an obsolete version.
                tables.append(read_table(path))
        yield from families(tables)


def add_to_ended(folder: Path, process: str, ended: str) -> None:
    """Add the counts of a process that has exited to those of all exited processes, and delete its files.

    Args:
        folder: The folder with the tables of all processes.
        process: The process's part of the files' names.
        ended: The same for the sums over all exited processes.
    """
    for path in folder.glob(f"{process}_*{SUFFIX}"):
        target = folder / path.name.replace(process, ended, 1)
        tables = [read_table(part) for part in (path, target) if part.exists()]
        # This replaces the target. If there is too little space, both files stay, and are still counted.
        sums = new_table(max((table.header for table in tables), key=lambda header: header.opened_s), target)
        for table in tables:
            sums.add(table)
        path.unlink()
    opened_s = {path: read_table(path).header.opened_s for path in folder.glob(f"{ended}_*{SUFFIX}")}
    for path in sorted(opened_s, key=opened_s.__getitem__)[:-MAX_VERSIONS]:
        path.unlink()


def families(tables: Iterable[Table]) -> Iterator[Metric]:
    """Yield the metrics of all versions. Tables of the same version are added up."""
    merged: dict[str, Table] = {}
    for table in tables:
        version = table.header.version
        merged.setdefault(version, new_table(table.header)).add(table)
    requests = CounterMetricFamily(
        "ctr_predicted_requests", "Counted requests by model version, about one in 16", labels=["version"]
    )
    histogram = HistogramMetricFamily(
        "ctr_predicted", "Probabilities of the counted requests by model version", labels=["version"]
    )
    for version, table in merged.items():
        requests.add_metric([version], int(table.requests[0]))
        counts = zip(map(floatToGoString, BOUNDS), table.up_to(BOUNDS), strict=True)
        buckets = [*counts, ("+Inf", int(table.predicted.sum()))]
        histogram.add_metric([version], buckets, float(table.total[0]))
    yield requests
    yield histogram
    yield from reference_families(merged)


def reference_families(tables: Mapping[str, Table]) -> Iterator[Metric]:
    """Yield the counts in the bins of the reference, and the reference's shares, by version."""
    bins = CounterMetricFamily(
        "ctr_predicted_bins", "Probabilities by the bin of the reference", labels=["version", "bin"]
    )
    bin_shares = GaugeMetricFamily(
        "ctr_reference_predicted_share", "Share of each bin in the validation set", labels=["version", "bin"]
    )
    values = CounterMetricFamily(
        "ctr_field_values", "Values of a field by the bin of the reference", labels=["version", "field", "bin"]
    )
    value_shares = GaugeMetricFamily(
        "ctr_reference_field_share", "Share of each bin in the validation set", labels=["version", "field", "bin"]
    )
    for version, table in tables.items():
        if (reference := table.header.reference) is None:
            continue
        cumulative = [0, *table.up_to(reference.predicted.edges), int(table.predicted.sum())]
        shares = reference.predicted.bin_shares().items()
        for (name, share), (below, up_to) in zip(shares, pairwise(cumulative), strict=True):
            bins.add_metric([version, name], up_to - below)
            bin_shares.add_metric([version, name], share)
        counts = {**dict(zip(table.categorical, table.tokens, strict=True)), **table.numbers}
        for field, field_bins in reference.field_shares().items():
            for (name, share), count in zip(field_bins.items(), counts[field].tolist(), strict=True):
                values.add_metric([version, field, name], count)
                value_shares.add_metric([version, field, name], share)
    yield from (bins, bin_shares, values, value_shares)
