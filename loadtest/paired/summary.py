"""The statistics and the report of a comparison. This module starts no processes."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from contract.golden import TOLERANCE
from loadtest.paired.checkouts import Name, Sides
from loadtest.paired.runs import CONNECTIONS, Plan, Run
from loadtest.report import Table

CONFIDENCE = 0.95
CPU = "CPU µs/request"


@dataclass(frozen=True)
class Interval:
    """A ratio and the bounds of its confidence interval."""

    ratio: float
    low: float
    high: float

    def cells(self) -> tuple[str, str]:
        return f"{self.ratio:.3f}", f"{self.low:.3f} to {self.high:.3f}"


@dataclass(frozen=True)
class Results:
    """All measurements of a comparison.

    Args:
        capacities: Closed-loop requests/s of each checkout, measured before the pairs.
        difference: Largest difference between the two servers' probabilities for the same candidate.
        runs: Runs of each checkout, in the order of the pairs.
    """

    sides: Sides
    plan: Plan
    capacities: Mapping[Name, float]
    difference: float
    runs: Mapping[Name, Sequence[Run]]


# The figures of a run: how to compute and how to print each.
FIGURES: dict[str, tuple[Callable[[Run], float], str]] = {
    CPU: (lambda run: run.cpu_us, ",.0f"),
    "requests/s": (lambda run: run.per_s, ",.1f"),
    "p50 ms": (lambda run: run.p50_ms, ",.2f"),
    "p99 ms": (lambda run: run.p99_ms, ",.2f"),
}


def ratio_interval(this: Sequence[float], other: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the geometric mean of the pairs' ratios this / other, with a t interval of their logarithms.

    It uses logarithms, because swapping the checkouts must give the reciprocal. It uses a t interval, because each run
    averages thousands of requests, so the logarithms are close to normal. A bootstrap with few pairs gives intervals
    that are too narrow.

    Raises:
        ValueError: There are fewer than two pairs, or a value is not a positive number.
    """
    if len(this) < 2:
        raise ValueError(f"{len(this)} pairs: an interval requires 2 or more")
    logs = []
    for this_value, other_value in zip(this, other, strict=True):
        if not (0 < this_value < math.inf and 0 < other_value < math.inf):
            raise ValueError(f"{this_value} / {other_value}: a ratio requires two positive numbers")
        logs.append(math.log(this_value) - math.log(other_value))
    mean = float(np.mean(logs))
    half = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * np.std(logs, ddof=1) / math.sqrt(len(logs)))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def schedule(pairs: int) -> list[tuple[Name, Name]]:
    """Return the order of each pair's runs. It alternates, so that neither checkout always goes first."""
    return [("this", "other") if pair % 2 == 0 else ("other", "this") for pair in range(pairs)]


def ratios(results: Results) -> dict[str, Interval]:
    """Return the ratio this / other for each entry of FIGURES."""
    this, other = results.runs["this"], results.runs["other"]
    return {
        name: ratio_interval([figure(run) for run in this], [figure(run) for run in other])
        for name, (figure, _) in FIGURES.items()
    }


def ratio_table(results: Results) -> Table:
    """Return the table of figures and ratios.

    Each checkout's figure is the geometric mean over its runs, so the quotient of two figures is the mean ratio.
    """
    rows = []
    for name, interval in ratios(results).items():
        figure, form = FIGURES[name]
        means = (stats.gmean([figure(run) for run in results.runs[side]]) for side in ("this", "other"))
        rows.append([name, *(format(float(mean), form) for mean in means), *interval.cells()])
    return Table("", ("", "this", "other", "this / other", f"{CONFIDENCE:.0%} interval"), rows)


def check_table(results: Results) -> Table:
    """Return the table that shows whether the answers were correct and the load was as intended."""
    lines: list[tuple[str, Callable[[Sequence[Run]], str]]] = [
        ("answers checked", lambda runs: f"{sum(run.checked for run in runs):,}"),
        ("wrong scores", lambda runs: str(sum(run.wrong for run in runs))),
        ("requests without scores", lambda runs: str(sum(run.failed for run in runs))),
        ("CPU s per s: server", lambda runs: f"{np.mean([run.server_cpu for run in runs]):.2f}"),
        ("CPU s per s: generator", lambda runs: f"{np.mean([run.client_cpu for run in runs]):.2f}"),
        ("CPU s per s: other processes", lambda runs: f"{np.mean([run.other_cpu for run in runs]):.2f}"),
        ("p99 of the generator's lateness, median ms", lambda runs: f"{np.median([r.late_ms for r in runs]):.2f}"),
        ("CPU stolen by the host", lambda runs: f"{stolen_share(runs):.1%}"),
    ]
    names: tuple[Name, Name] = ("this", "other")
    rows = [("commit", *(results.sides[name].commit for name in names))]
    rows += [("capacity, requests/s", *(f"{results.capacities[name]:,.0f}" for name in names))]
    rows += [(label, *(cell(results.runs[name]) for name in names)) for label, cell in lines]
    return Table("Checks", ("", "this", "other"), rows)


def stolen_share(runs: Sequence[Run]) -> float:
    """Return the share of all cores' time that the host withheld from this machine during the runs."""
    windows = [run.window for run in runs]
    stolen, total = sum(window.stolen_s for window in windows), sum(window.seconds for window in windows)
    return stolen / total / (os.cpu_count() or 1)


def describe(results: Results) -> str:
    """Return the report's paragraphs: what was run, how it was measured, and how closely the scores agree."""
    plan, sides = results.plan, results.sides
    candidates, pairs = len(plan.requests[0].ids), len(results.runs["this"])
    pinned = "server and generator are not pinned"
    if plan.client_cpus:
        pinned = f"server on CPU {', '.join(map(str, plan.server_cpus))}, generator on CPU {plan.client_cpus[0]}"
    load = f"The load is a closed loop of {CONNECTIONS} connections"
    if plan.rate is not None:
        load = f"The load has Poisson arrivals at {plan.rate:.0f} requests/s, at the same times for both runs of a pair"
    versions = sides["this"].probe.versions
    others = [f"{name} {v}" for name, v in sides["other"].probe.versions.items() if v != versions[name]]
    libraries = f"`other` runs {', '.join(others)}." if others else "Both run the same versions of their libraries."
    settings = " ".join(f"`{name}={value}`" for name, value in sides["this"].checkout.settings.items())
    own = f" Only `this` runs with {settings}." if settings else ""
    return (
        f"Bundle {plan.bundle.manifest.name}, {candidates} candidates per request, {plan.workers} worker(s); "
        f"{pinned}. {pairs} pairs of runs, in alternating order. Each run starts a new server, warms it up for "
        f"{plan.warm_up_s:g} s and measures for {plan.seconds:g} s. {load}. {libraries}{own}\n\n"
        "CPU is the user and system time of supervisor and workers in the measured window, divided by the number of "
        "requests answered in it. Latency is measured from the intended send time. `this` and `other` are geometric "
        "means over the runs. `this / other` is the geometric mean of the pairs' ratios, with the "
        f"{CONFIDENCE:.0%} t interval of their logarithms.\n\n"
        f"The two servers' probabilities differ by at most {results.difference:.1g} over "
        f"{len(plan.requests) * candidates:,} candidates; the limit is {TOLERANCE:g}. Every answer under load is "
        "compared with the bundle's own model."
    )


def problems_of(results: Results, fail_above: float | None) -> list[str]:
    """Return a message for each problem that makes the exit code 1."""
    found = []
    for name, runs in results.runs.items():
        if failed := sum(run.failed for run in runs):
            found.append(f"{name}: {failed} requests were not answered with scores")
        if wrong := sum(run.wrong for run in runs):
            first = next((problem for run in runs for problem in run.problems), "unknown")
            found.append(f"{name}: {wrong} answers were wrong. The first: {first}")
    if not results.difference <= TOLERANCE:
        found.append(f"the two servers' probabilities differ by {results.difference:.3g}, more than {TOLERANCE:g}")
    if fail_above is not None and (high := ratios(results)[CPU].high) > fail_above:
        found.append(f"the upper bound of the CPU ratio is {high:.3f}, above --fail-above {fail_above:g}")
    return found
