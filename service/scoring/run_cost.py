"""What a run of the model costs: measured before the first request, and corrected by every run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from contract.encode import ModelInput

REPEATS = 5
FORGET = 0.1  # of what is known of the drift, by a run: one slow run must not refuse what could be served


class RunCost:
    """Seconds of a run: (fixed + rows * per_row) * drift."""

    def __init__(self, fixed_s: float = 0.0, per_row_s: float = 0.0) -> None:
        self._fixed_s = fixed_s
        self._per_row_s = per_row_s
        self._drift = 1.0

    def seconds(self, rows: int) -> float:
        return (self._fixed_s + rows * self._per_row_s) * self._drift

    def ran(self, rows: int, seconds: float) -> None:
        expected_s = self._fixed_s + rows * self._per_row_s
        if expected_s > 0:
            self._drift += FORGET * (seconds / expected_s - self._drift)
        else:  # nothing was measured: this run is the measure
            self._per_row_s = seconds / rows


def measure(run: Callable[[Sequence[ModelInput]], object], one: ModelInput, max_rows: int) -> RunCost:
    """Times runs of one row and of `max_rows`, which also has the model allocate what it will need. one: of one row."""
    many = replace(
        one,
        candidate_ids=np.repeat(one.candidate_ids, max_rows, axis=0),
        candidate_values=np.repeat(one.candidate_values, max_rows, axis=0),
    )
    least_s, most_s = (_fastest_s(lambda batch=batch: run(batch)) for batch in ([one], [many]))  # type: ignore[misc]
    per_row_s = max(0.0, most_s - least_s) / max(1, max_rows - 1)
    return RunCost(max(0.0, least_s - per_row_s), per_row_s)


def _fastest_s(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
    return min(times)
