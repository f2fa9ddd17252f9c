"""Latency quantiles over the last minute, accurate to 0.1%, for reading /metrics without a Prometheus server.

Each process counts latencies in slices of ten seconds. The counts can be stored in a memory-mapped file, so that
another process can merge the files of all processes.
"""

import ctypes
import mmap
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.telemetry.metrics_folder import reserve

QUANTILES = (0.5, 0.9, 0.99, 0.999)
SLICE_S = 10
SLICES = 6  # of SLICE_S seconds: one minute
MAX_US = 60_000_000
SIGNIFICANT_FIGURES = 3
SUFFIX = ".hdr"
COUNT_BYTES = 8

Clock = Callable[[], float]

LAYOUT = HdrHistogram(1, MAX_US, SIGNIFICANT_FIGURES)
ROW = 1 + LAYOUT.counts_len  # the slice's number, then its counts
TABLE_BYTES = SLICES * ROW * COUNT_BYTES


class RollingLatency(Collector):
    """The latencies of one process over the last minute.

    Args:
        path: File for the counts. If it is None, they are kept in this process's memory.
        clock: Monotonic time in seconds. It must be the same for all processes whose files are merged.
    """

    def __init__(self, path: Path | None = None, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        memory: bytearray | mmap.mmap = bytearray(TABLE_BYTES)
        if path is not None:
            path.write_bytes(b"")
            reserve(path, TABLE_BYTES)
            with path.open("r+b") as file:
                memory = mmap.mmap(file.fileno(), TABLE_BYTES)
        self._table = np.frombuffer(memory, np.int64).reshape(SLICES, ROW)
        self._histograms = []
        for row in range(SLICES):
            histogram = HdrHistogram(1, MAX_US, SIGNIFICANT_FIGURES)
            # The histogram counts directly in the table.
            offset = (row * ROW + 1) * COUNT_BYTES
            histogram.counts = (ctypes.c_int64 * LAYOUT.counts_len).from_buffer(memory, offset)
            self._histograms.append(histogram)

    def record(self, seconds: float) -> None:
        """Count one latency. Values are clipped to the range from 1 µs to 60 s."""
        number = int(self._clock() // SLICE_S)
        row = number % SLICES
        if self._table[row, 0] != number:
            self._table[row] = 0
            self._table[row, 0] = number
        self._histograms[row].record_value(min(MAX_US, max(1, round(seconds * 1e6))))

    def quantiles_s(self) -> dict[float, float]:
        """Return quantile -> seconds. Empty if no latency was recorded in the last minute."""
        return merged_quantiles_s([self._table], self._clock())

    def collect(self) -> Iterable[GaugeMetricFamily]:
        yield latency_family(self.quantiles_s())


class MergedRollingLatency(Collector):
    """The latencies of all processes that keep their counts in one folder, over the last minute."""

    def __init__(self, folder: Path, clock: Clock = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock

    def collect(self) -> Iterable[GaugeMetricFamily]:
        tables = [np.fromfile(path, np.int64) for path in self._folder.glob(f"*{SUFFIX}")]
        complete = [table.reshape(SLICES, ROW) for table in tables if table.nbytes == TABLE_BYTES]
        yield latency_family(merged_quantiles_s(complete, self._clock()))


def merged_quantiles_s(tables: list[NDArray[np.int64]], now_s: float) -> dict[float, float]:
    """Return quantile -> seconds for the last minute, over all tables. Empty if they hold no recent latency.

    Args:
        tables: int64 [SLICES, ROW], one table per process.
        now_s: The current time on the clock of the tables.
    """
    # NumPy sums the counts. HdrHistogram would iterate over them in Python, and every request would wait for that.
    oldest = int(now_s // SLICE_S) - SLICES + 1
    rows = [row[1:] for table in tables for row in table if row[0] >= oldest]
    cumulative = np.sum(rows, axis=0).cumsum() if rows else np.zeros(1, np.int64)
    if not cumulative[-1]:
        return {}
    ranks = [max(1, round(quantile * int(cumulative[-1]))) for quantile in QUANTILES]
    indices = np.searchsorted(cumulative, ranks).tolist()
    values_us = (LAYOUT.get_highest_equivalent_value(LAYOUT.get_value_from_index(index)) for index in indices)
    return {quantile: value_us / 1e6 for quantile, value_us in zip(QUANTILES, values_us, strict=True)}


def latency_family(quantiles_s: dict[float, float]) -> GaugeMetricFamily:
    """Return the metric family of the quantiles."""
    family = GaugeMetricFamily(
        "ctr_request_latency_seconds",
        "Latency of requests that were scored or missed their deadline, over the last minute",
        labels=["quantile"],
    )
    for quantile, seconds in quantiles_s.items():
        family.add_metric([str(quantile)], seconds)
    return family
