"""Count what a model predicts and what its inputs look like, so that Prometheus can compare it with the reference.

Only one request in ONE_IN is counted, chosen at random, and several of them are counted together. Otherwise, counting
would take more than 1% of a request's CPU time.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.registry import Collector

from contract.encode import ModelInput
from contract.reference import Reference
from contract.schema import FeatureSchema, Side
from service.telemetry.drift_table import (
    KNOWN,
    MAX_VERSIONS,
    MISSING,
    SUFFIX,
    UNKNOWN,
    Header,
    Table,
    families,
    new_table,
)

ONE_IN = 16
FLUSH_S = 1.0
MAX_PENDING = 8  # Counting them takes about 0.1 ms, during which other requests wait.


class Pending(NamedTuple):
    """A request that is not counted yet.

    Attributes:
        context_values: Its normalized numbers. Shape: (1, numeric context fields).
        candidate_values: Those of its N candidates. Shape: (N, numeric candidate fields).
        ctr: Its probabilities, (N), or None if they must not be counted.
        missing: Field -> number of missing values.
        unknown: Field -> number of unknown values.
    """

    context_values: NDArray[np.float32]
    candidate_values: NDArray[np.float32]
    ctr: NDArray[np.float64] | None
    missing: Mapping[str, int]
    unknown: Mapping[str, int]


@dataclass(frozen=True)
class NumericField:
    """What is needed to count a numeric field.

    Attributes:
        name: The field.
        edges: The edges of its bins.
        missing_bin: The bin that a missing number falls into. It is NaN, which sorts last, or was replaced with 0 (see
            Numbers.normalize()).
    """

    name: str
    edges: NDArray[np.float64]
    missing_bin: int


class DriftCounter:
    """Counts the requests of one model version in one process. Use it from one event loop only.

    Attributes:
        table: The counts.
    """

    def __init__(self, schema: FeatureSchema, table: Table) -> None:
        self.table = table
        self._pending: list[Pending] = []
        self._has_timer = False
        self._numeric: dict[Side, list[NumericField]] = {"context": [], "candidate": []}
        self._rows = {name: row for row, name in enumerate(table.categorical)}  # field -> its row in table.tokens
        sides = {field.name: field.side for field in schema.fields}
        self._is_context = np.array([sides[name] == "context" for name in table.categorical], bool)
        if table.header.reference is not None:
            for field in schema.select("numeric"):
                edges = np.array(table.header.reference.numeric[field.name].bins.edges, np.float64)
                missing_bin = len(edges) if field.missing_vector else int(np.searchsorted(edges, 0.0))
                self._numeric[field.side].append(NumericField(field.name, edges, missing_bin))

    def add(
        self,
        model_input: ModelInput,
        ctr: NDArray[np.float64] | None,
        missing: Mapping[str, int],
        unknown: Mapping[str, int],
    ) -> None:
        """Count a scored request within FLUSH_S, if it is in the sample. See Pending for the arguments."""
        if random.random() * ONE_IN >= 1:  # noqa: S311  This is not a secret.
            return
        self._pending.append(Pending(model_input.context_values, model_input.candidate_values, ctr, missing, unknown))
        if len(self._pending) >= MAX_PENDING:
            self.flush()
        elif not self._has_timer:
            self._has_timer = True
            asyncio.get_running_loop().call_later(FLUSH_S, self._flush_on_time)

    def flush(self) -> None:
        """Count all requests that were added."""
        if self._pending:
            pending, self._pending = self._pending, []
            self.count(pending)

    def count(self, pending: Sequence[Pending]) -> None:
        """Count requests now."""
        self.table.requests[:] += len(pending)
        if predicted := [request.ctr for request in pending if request.ctr is not None]:
            ctr = np.concatenate(predicted)
            self.table.predicted[:] += counts_of(self.table.bounds, ctr)
            self.table.total[:] += ctr.sum()
        if self.table.header.reference is not None:
            missing, unknown = sum_of([one.missing for one in pending]), sum_of([one.unknown for one in pending])
            self._count_tokens(pending, missing, unknown)
            self._count_numbers("context", [one.context_values for one in pending], missing)
            self._count_numbers("candidate", [one.candidate_values for one in pending], missing)

    def _flush_on_time(self) -> None:
        self._has_timer = False
        self.flush()

    def _count_tokens(self, pending: Sequence[Pending], missing: Mapping[str, int], unknown: Mapping[str, int]) -> None:
        candidates = sum(len(one.candidate_values) for one in pending)
        self.table.tokens[:, KNOWN] += np.where(self._is_context, len(pending), candidates)
        for column, counts in ((UNKNOWN, unknown), (MISSING, missing)):
            for name, count in counts.items():
                if (row := self._rows.get(name)) is not None:
                    self.table.tokens[row, column] += count
                    self.table.tokens[row, KNOWN] -= count

    def _count_numbers(self, side: Side, values: list[NDArray[np.float32]], missing: Mapping[str, int]) -> None:
        if not (fields := self._numeric[side]):
            return
        for field, column in zip(fields, np.concatenate(values).T, strict=True):
            counts = self.table.numbers[field.name]
            counts[:-1] += counts_of(field.edges, column)
            if absent := missing.get(field.name, 0):
                counts[field.missing_bin] -= absent
                counts[-1] += absent


class Drift(Collector):
    """The counts of the last versions that this process has served.

    Args:
        folder: The folder that all processes share, or None if there is one process only.
        process: This process's part of the files' names.
    """

    def __init__(self, folder: Path | None = None, process: str = "") -> None:
        self._folder = folder
        self._process = process
        self._counters: dict[str, DriftCounter] = {}  # by version, with the newest last

    def open(self, version: str, schema: FeatureSchema, reference: Reference | None) -> DriftCounter:
        """Return the counter of a version. It continues if the version was served before.

        Raises:
            NoSpace: There is too little space for its file.
        """
        counter = self._counters.pop(version, None)
        if counter is None:
            counter = DriftCounter(schema, new_table(Header(version, reference, time.time()), self._path(version)))
        self._counters[version] = counter
        while len(self._counters) > MAX_VERSIONS:
            self._remove(next(iter(self._counters)))
        return counter

    def discard(self, version: str) -> None:
        """Remove the counter of a version that has never been served. Otherwise, it could displace one in use."""
        if version in self._counters and not self._counters[version].table.requests[0]:
            self._remove(version)

    def collect(self) -> Iterator[Metric]:
        for counter in self._counters.values():
            counter.flush()
        yield from families([counter.table for counter in self._counters.values()])

    def _remove(self, version: str) -> None:
        del self._counters[version]
        if (path := self._path(version)) is not None:
            path.unlink(missing_ok=True)

    def _path(self, version: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{self._process}_{version}{SUFFIX}"


def counts_of(edges: NDArray[np.float64], numbers: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the number of numbers in each bin. See contract.reference.Bins."""
    return np.bincount(np.searchsorted(edges, numbers), minlength=len(edges) + 1)


def sum_of(counts: Sequence[Mapping[str, int]]) -> Mapping[str, int]:
    """Return the sum of counts by field."""
    total: dict[str, int] = defaultdict(int)
    for one in counts:
        for field, count in one.items():
            total[field] += count
    return total
