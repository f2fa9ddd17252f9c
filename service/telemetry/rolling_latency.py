"""Quantiles of the latency over the last minute, to 0.1%: for whoever reads /metrics without a Prometheus.

Each process counts in slices of ten seconds, in memory that may be a file: then another process merges those of all.
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

QUANTILES = (0.5, 0.9, 0.99, 0.999)
SLICE_S = 10
SLICES = 6  # of SLICE_S seconds: a minute
LONGEST_US = 60_000_000
SIGNIFICANT_FIGURES = 3
SUFFIX = ".hdr"
WORD = 8  # bytes of a count

Clock = Callable[[], float]


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, LONGEST_US, SIGNIFICANT_FIGURES)


_LAYOUT = _histogram()
_COUNTS = _LAYOUT.counts_len
_ROW = 1 + _COUNTS  # the slice's number, and its counts
_BYTES = SLICES * _ROW * WORD


class LastMinute(Collector):
    """One process's slices, and what they say. path: of the file to keep them in."""

    def __init__(self, path: Path | None = None, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        memory = bytearray(_BYTES) if path is None else _mapped(path)
        self._table = np.frombuffer(memory, np.int64).reshape(SLICES, _ROW)
        self._histograms = [_on(memory, (row * _ROW + 1) * WORD) for row in range(SLICES)]

    def record(self, seconds: float) -> None:
        number = int(self._clock() // SLICE_S)
        row = number % SLICES
        if self._table[row, 0] != number:
            self._table[row] = 0
            self._table[row, 0] = number
        self._histograms[row].record_value(min(LONGEST_US, max(1, round(seconds * 1e6))))

    def quantiles_s(self) -> dict[float, float]:
        """Empty when nothing was recorded in the last minute."""
        return _quantiles_s([self._table], self._clock())

    def collect(self) -> Iterable[GaugeMetricFamily]:
        yield _family(self.quantiles_s())


class LastMinuteOfAll(Collector):
    """The same over all processes that keep their slices in a folder."""

    def __init__(self, folder: Path, clock: Clock = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock

    def collect(self) -> Iterable[GaugeMetricFamily]:
        tables = [np.fromfile(path, np.int64) for path in self._folder.glob(f"*{SUFFIX}")]
        whole = [table.reshape(SLICES, _ROW) for table in tables if table.nbytes == _BYTES]
        yield _family(_quantiles_s(whole, self._clock()))


def _mapped(path: Path) -> mmap.mmap:
    with path.open("w+b") as file:
        file.truncate(_BYTES)
        return mmap.mmap(file.fileno(), _BYTES)


def _on(memory: bytearray | mmap.mmap, offset: int) -> HdrHistogram:
    """A histogram that counts in that memory."""
    histogram = _histogram()
    histogram.counts = (ctypes.c_int64 * _COUNTS).from_buffer(memory, offset)
    return histogram


def _quantiles_s(tables: list[NDArray[np.int64]], now_s: float) -> dict[float, float]:
    # Over the counts as arrays: HdrHistogram itself walks them in Python, and every request would wait for that.
    oldest = int(now_s // SLICE_S) - SLICES + 1
    rows = [row[1:] for table in tables for row in table if row[0] >= oldest]
    up_to = np.sum(rows, axis=0).cumsum() if rows else np.zeros(1, np.int64)
    if not up_to[-1]:
        return {}
    ranks = [max(1, round(quantile * int(up_to[-1]))) for quantile in QUANTILES]
    indices = np.searchsorted(up_to, ranks).tolist()
    values_us = (_LAYOUT.get_highest_equivalent_value(_LAYOUT.get_value_from_index(index)) for index in indices)
    return {quantile: value_us / 1e6 for quantile, value_us in zip(QUANTILES, values_us, strict=True)}


def _family(quantiles_s: dict[float, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "ctr_request_latency_seconds", "Of the last minute's scored and expired requests", labels=["quantile"]
    )
    for quantile, seconds in quantiles_s.items():
        family.add_metric([str(quantile)], seconds)
    return family
