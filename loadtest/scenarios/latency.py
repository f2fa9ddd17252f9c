"""Latency by request rate and number of candidates: python -m loadtest.scenarios.latency

Two workers, Redis and the generator share the same cores. The model has 23 fields and the paper's attention. First, a
closed loop finds the server's capacity. Then open loops measure the latency: for ten minutes at half of the capacity,
and for a shorter time at each point of the curves.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import matplotlib.pyplot as plt

from contract.bundle import Bundle, open_bundle
from contract.cpu_quota import available_cpus
from loadtest.openloop import records as read
from loadtest.openloop.bodies import prepare
from loadtest.openloop.load import Load, Outcome, run
from loadtest.openloop.message import Prepared
from loadtest.openloop.phases import ServerTimes, scrape, server_times
from loadtest.openloop.saturate import saturate
from loadtest.reference_model import ensure_bundle
from loadtest.report import Table
from loadtest.servers import Server, redis_with, serving, stolen_s
from loadtest.targets import RESULTS, Target, report

WORKERS = 2
TARGET_CANDIDATES = 100  # the target applies to requests with this many candidates
LARGE = 500
P99_MS = 10.0
TIMEOUT_MS = 1000  # long enough that slow answers count as slow, not as missing
CONNECTIONS = (2, 4, 8)  # of the closed loop; the best number is used
MAX_NOT_ANSWERED = 0.001  # share of the requests at half of capacity; latencies cover only the answered ones
SIZES = (1, 3, 10, 30, 100, 300, 1000)
ALL_SIZES = sorted({*SIZES, TARGET_CANDIDATES, LARGE})
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# The paper's section 5 gives 400 million impressions a day. The peak factor and the number of candidates are typical of
# ad servers.
IMPRESSIONS, PEAK, SCORED = 400e6, 3, 100
DAY_S = 86_400
TITLE = "Latency, from the intended time"


@dataclass(frozen=True)
class Capacity:
    """The server's capacity, measured in a closed loop.

    Args:
        per_s: Answered requests per second.
        cpu_s: CPU seconds of all server processes per answer.
        refused: Share of requests that were refused. Their cost is included in `cpu_s`.
    """

    per_s: float
    cpu_s: float
    refused: float

    def row(self, candidates: int) -> list[str]:
        cpu_us = self.cpu_s * 1e6
        rates = f"{self.per_s:.0f}", f"{self.per_s * candidates:,.0f}"
        return [str(candidates), *rates, f"{cpu_us:.0f}", f"{cpu_us / candidates:.1f}", f"{self.refused:.1%}"]


@dataclass(frozen=True)
class Measured:
    """One open-loop load.

    Args:
        candidates: Candidates per request.
        share: Offered rate as a share of the capacity.
        times: Server-side metrics.
        cpu_s: CPU seconds of the server's processes per request.
        stolen: Share of the cores' time that the host withheld from this machine.
    """

    candidates: int
    share: float
    outcome: Outcome
    times: ServerTimes | None
    cpu_s: float
    stolen: float

    def quantiles_ms(self) -> list[float]:
        """Return p50, p90, p99 and p99.9 of the answers' latency, from the intended time."""
        answered = read.answered(read.scores(self.outcome.records))
        return read.quantiles_ms(read.from_intended_ms(answered), (50, 90, 99, 99.9))

    def row(self) -> list[str]:
        scores = read.scores(self.outcome.records)
        late = read.quantiles_ms(read.lateness_ms(scores), (99,))[0]
        return [
            str(self.candidates),
            f"{self.share:.0%}",
            f"{self.outcome.load.rate:.0f}",
            f"{len(scores):,}",
            read.described(read.not_answered(scores)),
            *(f"{ms:.1f}" for ms in self.quantiles_ms()),
            f"{late:.1f}",
            f"{self.cpu_s * 1e6:.0f}",
            f"{self.cpu_s * self.outcome.load.rate / available_cpus():.0%}",
            f"{self.stolen:.1%}",
        ]


HEADER = ("candidates", "of capacity", "requests/s", "sent", "not answered", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms",
          "client late p99", "CPU µs a request", "server's share of the cores", "CPU stolen")  # fmt: skip
CAPACITY_HEADER = ("candidates", "requests/s", "candidates/s", "CPU µs a request", "CPU µs a candidate", "refused")


class Bench:
    """A running server, and requests of every size."""

    def __init__(self, server: Server, bundle: Bundle) -> None:
        self._server = server
        self._requests: Mapping[int, list[Prepared]] = {n: prepare([bundle], {n: 200}, TIMEOUT_MS) for n in ALL_SIZES}

    def capacity(self, candidates: int, seconds: float, rounds: int) -> Capacity:
        """Return medians over the rounds, for the best number of connections."""
        messages = [request.message for request in self._requests[candidates]]
        found = []
        for connections in CONNECTIONS:
            measured = []
            for _ in range(rounds):
                before_s = self._server.cpu_s()
                answers = saturate(self._server.url, messages, connections, seconds)
                cpu_s = (self._server.cpu_s() - before_s) / max(1, answers.good)
                measured.append((answers.per_s, cpu_s, answers.other / max(1, answers.good + answers.other)))
            found.append(Capacity(*(statistics.median(column) for column in zip(*measured, strict=True))))
        return max(found, key=lambda capacity: capacity.per_s)

    def offer(self, candidates: int, capacity: Capacity, share: float, seconds: float) -> Measured:
        """Run an open loop at a share of the capacity."""
        load = Load(self._server.url, share * capacity.per_s, seconds, TIMEOUT_MS, check=0.02)
        before, cpu_s, host_s = scrape(f"{self._server.url}/metrics"), self._server.cpu_s(), stolen_s()
        outcome = run(load, self._requests[candidates])
        cpu_s = (self._server.cpu_s() - cpu_s) / max(1, len(outcome.records))
        stolen = (stolen_s() - host_s) / seconds / available_cpus()
        times = server_times(before, scrape(f"{self._server.url}/metrics"))
        return Measured(candidates, share, outcome, times, cpu_s, stolen)


@dataclass(frozen=True)
class Results:
    """All measurements.

    Args:
        capacities: Capacity by number of candidates.
        long: The two long loads, at half of capacity.
        again: Capacities measured right after each long load, to show whether the machine has become slower.
        over_candidates, over_rate: The points of the two curves.
    """

    capacities: dict[int, Capacity]
    long: list[Measured]
    again: dict[int, Capacity]
    over_candidates: list[Measured]
    over_rate: list[Measured]

    def loads(self) -> list[Measured]:
        return [*self.long, *self.over_candidates, *self.over_rate]


def measure(bench: Bench, options: argparse.Namespace) -> Results:
    def capacity(candidates: int) -> Capacity:
        return bench.capacity(candidates, options.step_seconds / 5, options.rounds)

    capacities, long, again = {}, [], {}
    for candidates in (TARGET_CANDIDATES, LARGE):
        capacities[candidates] = capacity(candidates)
        long.append(bench.offer(candidates, capacities[candidates], 0.5, options.seconds))
        again[candidates] = capacity(candidates)
    capacities |= {n: capacity(n) for n in ALL_SIZES if n not in capacities}
    over_candidates = [bench.offer(n, capacities[n], 0.5, options.step_seconds) for n in SIZES]
    target = capacities[TARGET_CANDIDATES]
    over_rate = [bench.offer(TARGET_CANDIDATES, target, share, options.step_seconds) for share in SHARES]
    return Results(capacities, long, again, over_candidates, over_rate)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report. Return 1 if a target fails."""
    options = parse_arguments(argv)
    path = options.bundle or ensure_bundle()
    bundle = open_bundle(path)
    with tempfile.TemporaryDirectory() as name, redis_with(Path(name), [bundle]) as redis:
        settings = {"CTR_BUNDLE": str(path), "CTR_REDIS_URL": redis.url}
        with serving(Path(name), WORKERS, settings) as server:
            results = measure(Bench(server, bundle), options)
    command = " ".join(["python -m loadtest.scenarios.latency", *(argv if argv is not None else sys.argv[1:])])
    draw("latency-rate", results.over_rate, "rate")
    draw("latency-candidates", results.over_candidates, "candidates")
    return report("latency", TITLE, describe(bundle, results), targets_of(results), tables_of(results), command)


def describe(bundle: Bundle, results: Results) -> str:
    """Return the report's paragraphs: what was run and how it was measured."""
    schema = bundle.schema
    sides = " and ".join(
        f"{len([field for field in schema.fields if field.side == side])} {side} fields"
        for side in ("context", "candidate")
    )
    return (
        f"{bundle.manifest.name}: {sides}, {bundle.manifest.attention} attention. {WORKERS} workers, the vocabulary in "
        f"Redis, and one generator (Poisson arrivals) share the same {available_cpus()} cores; none is pinned. "
        "Latency is measured from the intended send time, so it includes the generator's own lateness, which is shown "
        "next to it. "
        "A request takes more CPU time on cores that are not always busy (compare the closed loop), so half of "
        "capacity uses more than half of the cores. "
        f"Capacity: a closed loop of {', '.join(map(str, CONNECTIONS))} connections, whichever is best.\n\n"
        f"{cores_needed(results.capacities[SCORED])}\n\n"
        "![p50 and p99 over the rate](latency-rate.svg) ![p50 and p99 over candidates](latency-candidates.svg)"
    )


def cores_needed(capacity: Capacity) -> str:
    """Describe how many cores the paper's production load needs, based on the CPU time per request measured here."""
    average = IMPRESSIONS / DAY_S
    peak = average * PEAK
    busy = peak * capacity.cpu_s
    steps = (
        f"{IMPRESSIONS:,.0f} / {DAY_S:,} s = {average:,.0f}/s",
        f"x {PEAK} at the peak = {peak:,.0f} requests/s of {SCORED} candidates",
        f"x {capacity.cpu_s * 1e3:.2f} ms of CPU each = {busy:.1f} cores busy",
        f"at half load, as measured here: **{math.ceil(2 * busy)} cores**",
    )
    return f"The paper's production load, 400 million impressions a day: {'; '.join(steps)}."


def targets_of(results: Results) -> list[Target]:
    first = results.long[0]
    p99 = first.quantiles_ms()[2]
    loads = [read.scores(measured.outcome.records) for measured in results.loads()]
    wrong = sum(int(records["wrong"].sum()) for records in loads)
    checked = sum(int(records["checked"].sum()) for records in loads)
    scores = read.scores(first.outcome.records)
    lost = 1 - len(read.answered(scores)) / len(scores)
    name = f"p99 of {TARGET_CANDIDATES} candidates at half of capacity, {first.outcome.load.rate:.0f}/s"
    return [
        Target(name, f"{p99:.1f} ms", f"< {P99_MS:g} ms", p99 < P99_MS),
        Target(
            "not answered in that load",
            f"{lost:.3%} of {len(scores):,}",
            f"<= {MAX_NOT_ANSWERED:.1%}",
            lost <= MAX_NOT_ANSWERED,
        ),
        Target("wrong scores", f"{wrong} of {checked:,} answers checked", "0", wrong == 0 < checked),
    ]


def tables_of(results: Results) -> list[Table]:
    minutes = results.long[0].outcome.load.seconds / 60
    capacities = [results.capacities[candidates].row(candidates) for candidates in sorted(results.capacities)]
    again = [capacity.row(candidates) for candidates, capacity in results.again.items()]
    phases = [(str(m.candidates), *m.times.rows()[0][1:], m.times.rows()[1][1]) for m in results.long if m.times]
    return [
        Table(f"{minutes:g} minutes at half of capacity", HEADER, [m.row() for m in results.long]),
        Table("The server's own figures of these loads", ("candidates", "phases, mean ms", "scored, ms"), phases),
        Table("Capacity", CAPACITY_HEADER, capacities),
        Table("Capacity right after the long loads", CAPACITY_HEADER, again),
        Table("By candidates, at half of capacity", HEADER, [m.row() for m in results.over_candidates]),
        Table(f"By rate, {TARGET_CANDIDATES} candidates", HEADER, [m.row() for m in results.over_rate]),
    ]


def draw(name: str, measured: Sequence[Measured], over: Literal["rate", "candidates"]) -> None:
    """Plot p50 and p99 against the rate or the number of candidates, and save the plot as results/<name>.svg."""
    mpl.use("svg")
    plt.rcParams["svg.hashsalt"] = name  # so that the same data gives the same file
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    x = [m.outcome.load.rate if over == "rate" else m.candidates for m in measured]
    for index, label in ((0, "p50"), (2, "p99")):
        axes.plot(x, [m.quantiles_ms()[index] for m in measured], marker="o", label=label)
    axes.axhline(P99_MS, color="grey", linestyle=":", label=f"{P99_MS:g} ms")
    axes.set_xlabel(f"requests/s of {TARGET_CANDIDATES} candidates" if over == "rate" else "candidates of a request")
    axes.set_ylabel("ms from the intended time")
    axes.set_yscale("log")
    if over == "candidates":
        axes.set_xscale("log")
    axes.legend()
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loadtest.scenarios.latency", description=__doc__, formatter_class=raw)
    parser.add_argument("--bundle", type=Path, help="default: built by loadtest/reference_model.py if needed")
    parser.add_argument("--seconds", type=float, default=600, help="duration of each of the two long load runs")
    parser.add_argument("--step-seconds", type=float, default=15, help="duration of each point of the curves")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the closed loop")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
