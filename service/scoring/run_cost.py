"""Estimate how long a run of the model takes.

The estimate is measured before the first request, and corrected after every run.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from contract.encode import ModelInput

REPEATS = 5
DRIFT_WEIGHT = 0.1  # weight of the newest run; small, so that one slow run does not make the server refuse requests


class RunCost:
    """Estimates the duration of a run as (fixed + rows * per_row) * drift."""

    def __init__(self, fixed_s: float = 0.0, per_row_s: float = 0.0) -> None:
        self._fixed_s = fixed_s
        self._per_row_s = per_row_s
        self._drift = 1.0

    def seconds(self, rows: int) -> float:
        """Return how long a run with this many candidates is expected to take."""
        return (self._fixed_s + rows * self._per_row_s) * self._drift

    def record(self, rows: int, seconds: float) -> None:
        """Correct the estimate with the measured duration of a run."""
        expected_s = self._fixed_s + rows * self._per_row_s
        if expected_s > 0:
            self._drift += DRIFT_WEIGHT * (seconds / expected_s - self._drift)
        else:  # Nothing was measured, so this run is the measurement.
            self._per_row_s = seconds / rows


def measure(run: Callable[[Sequence[ModelInput]], object], one_row: ModelInput, max_rows: int) -> RunCost:
    """Time runs with one row and with `max_rows`. The latter also make the model allocate all the memory it needs."""
    many_rows = replace(
        one_row,
        candidate_ids=np.repeat(one_row.candidate_ids, max_rows, axis=0),
        candidate_values=np.repeat(one_row.candidate_values, max_rows, axis=0),
    )
    shortest_s, longest_s = fastest_s(run, one_row), fastest_s(run, many_rows)
    per_row_s = max(0.0, longest_s - shortest_s) / max(1, max_rows - 1)
    return RunCost(max(0.0, shortest_s - per_row_s), per_row_s)


def fastest_s(run: Callable[[Sequence[ModelInput]], object], model_input: ModelInput) -> float:
    """Return the duration of the fastest of several runs."""
    times = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        run([model_input])
        times.append(time.perf_counter() - start_s)
    return min(times)
