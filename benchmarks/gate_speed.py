"""CPU time and memory of the figures of ctr-gate: 1,000,000 rows and 1,000 resamples."""

import resource
import time
from collections.abc import Callable

import numpy as np

from benchmarks import RESULTS
from contract.calibration import sigmoid
from export.gate.figures import DRAWS, measure
from export.gate.rows import ScoredRows, Segments
from loadtest.report import Table, write_report
from model.experiments.bootstrap import WeightedAuc, resample

ROWS = 1_000_000
UNITS = (100_000, ROWS)
SEGMENTS = 100


def some_rows(units: int) -> ScoredRows:
    """Return rows with a click rate of about 7%, scored by two models that differ by 0.14 on the logit."""
    random = np.random.default_rng(1)
    logit = random.normal(-3, 1, ROWS)
    new, old = (sigmoid(logit + random.normal(0, 0.1, ROWS)) for _ in range(2))
    return ScoredRows(
        labels=(random.random(ROWS) < sigmoid(logit)).astype(np.float64),
        weights=np.ones(ROWS),
        new=new,
        old=old,
        clusters=np.r_[np.arange(units), random.integers(units, size=ROWS - units)],
        drawn="unit",
        units=units,
        segments={"slot": Segments([str(n) for n in range(SEGMENTS)], random.integers(SEGMENTS, size=ROWS))},
    )


def cpu_s(call: Callable[[], object]) -> float:
    """Return the CPU time of a call in seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start


def peak_mib() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Measure, and write the report."""
    found = []
    for units in UNITS:  # ascending, because the peak never falls
        rows, before = some_rows(units), peak_mib()
        seconds = cpu_s(lambda rows=rows: measure(rows))  # type: ignore[misc]
        found.append([f"{units:,}", f"{seconds:.1f} s", f"{peak_mib() - before:.0f} MiB"])
    auc, counts = WeightedAuc(rows.labels, rows.new), next(resample(ROWS, 1))
    exact = 2 * DRAWS * cpu_s(lambda: auc(counts))
    text = (
        f"{ROWS:,} rows that are already scored, {DRAWS:,} resamples, {SEGMENTS} segments. CPU time, and what the "
        "figures add to the peak memory of the process. A bootstrap that computes the AUC of both models on each "
        f"resample would take {exact:.0f} s for AUC alone."
    )
    table = Table("", ["units", "CPU time", "memory"], found)
    command = "python -m benchmarks.gate_speed"
    write_report(RESULTS / "gate-speed.md", "Speed of ctr-gate", text, [table], ["numpy", "scipy"], command)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
