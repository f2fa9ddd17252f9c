"""How long does an answer take, at which rate and for how many candidates? python -m loadtest.scenarios.latency

Two workers, Redis and the generator on the same cores; 23 fields, the paper's attention. First the most that the server
answers, in a closed loop; then an open loop at half of that for ten minutes, and the curves.
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
from loadtest.openloop import records as read
from loadtest.openloop.bodies import prepare
from loadtest.openloop.load import Load, Outcome, run
from loadtest.openloop.message import Prepared
from loadtest.openloop.phases import Split, scrape, split
from loadtest.openloop.saturate import saturate
from loadtest.reference_model import ensure_bundle
from loadtest.report import Table
from loadtest.servers import Server, redis_with, serving, stolen_s
from loadtest.targets import RESULTS, Bar, report
from service.runtime.cpu_quota import available_cpus

WORKERS = 2
PROMISED = 100  # candidates
LARGE = 500
P99_MS = 10.0
TIMEOUT_MS = 1000  # so that a slow answer is counted as one, and not as none
CONNECTIONS = (2, 4, 8)  # of the closed loop: the best counts
NOT_ANSWERED = 0.001  # of the requests, at half of the most: the latencies are those of the others
SIZES = (1, 3, 10, 30, 100, 300, 1000)
EVERY = sorted({*SIZES, PROMISED, LARGE})
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Section 5 of the paper: 400 million impressions a day. The rest is what an ad server does with it.
IMPRESSIONS, PEAK, SCORED = 400e6, 3, 100
DAY_S = 86_400
TITLE = "Latency, from the intended time"


@dataclass(frozen=True)
class Most:
    """What the server answers when it is never left alone. cpu_s: of all its processes, for an answer; refused: of the
    requests, a share, whose cost is in that of the answers."""

    per_s: float
    cpu_s: float
    refused: float

    def row(self, candidates: int) -> list[str]:
        cpu_us = self.cpu_s * 1e6
        rates = f"{self.per_s:.0f}", f"{self.per_s * candidates:,.0f}"
        return [str(candidates), *rates, f"{cpu_us:.0f}", f"{cpu_us / candidates:.1f}", f"{self.refused:.1%}"]


@dataclass(frozen=True)
class Measured:
    """share: of the most. cpu_s: of the server's processes, for a request; stolen: of the cores' time, by the machine's
    host."""

    candidates: int
    share: float
    outcome: Outcome
    server: Split | None
    cpu_s: float
    stolen: float

    def quantiles_ms(self) -> list[float]:
        """p50, p90, p99, p99.9, from the time when each request was meant to be sent."""
        return read.quantiles_ms(read.from_intended_ms(self._answered), (50, 90, 99, 99.9))

    @property
    def _answered(self) -> read.Records:
        return read.answered(read.scores(self.outcome.records))

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


HEADER = ("candidates", "of the most", "requests/s", "sent", "not answered", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms",
          "client late p99", "CPU us a request", "server's share of the cores", "CPU stolen")  # fmt: skip
MOST = ("candidates", "requests/s", "candidates/s", "CPU us a request", "CPU us a candidate", "refused")


class Bench:
    """One running server, and requests of every size."""

    def __init__(self, server: Server, bundle: Bundle) -> None:
        self._server = server
        self._requests: Mapping[int, list[Prepared]] = {n: prepare([bundle], {n: 200}, TIMEOUT_MS) for n in EVERY}

    def most(self, candidates: int, seconds: float, rounds: int) -> Most:
        """Medians over rounds, of the best number of connections."""
        messages = [request.message for request in self._requests[candidates]]
        found = []
        for connections in CONNECTIONS:
            measured = []
            for _ in range(rounds):
                before_s = self._server.cpu_s()
                answered = saturate(self._server.url, messages, connections, seconds)
                cpu_s = (self._server.cpu_s() - before_s) / max(1, answered.good)
                measured.append((answered.per_s, cpu_s, answered.other / max(1, answered.good + answered.other)))
            found.append(Most(*(statistics.median(column) for column in zip(*measured, strict=True))))
        return max(found, key=lambda most: most.per_s)

    def offer(self, candidates: int, most: Most, share: float, seconds: float) -> Measured:
        load = Load(self._server.url, share * most.per_s, seconds, TIMEOUT_MS, check=0.02)
        before, cpu_s, host_s = scrape(f"{self._server.url}/metrics"), self._server.cpu_s(), stolen_s()
        outcome = run(load, self._requests[candidates])
        cpu_s = (self._server.cpu_s() - cpu_s) / max(1, len(outcome.records))
        stolen = (stolen_s() - host_s) / seconds / available_cpus()
        return Measured(candidates, share, outcome, split(before, scrape(f"{self._server.url}/metrics")), cpu_s, stolen)


@dataclass(frozen=True)
class Results:
    """again: the most, right after each long load: a machine that has become slower since shows there."""

    most: dict[int, Most]
    long: list[Measured]
    again: dict[int, Most]
    over_candidates: list[Measured]
    over_rate: list[Measured]

    def every(self) -> list[Measured]:
        return [*self.long, *self.over_candidates, *self.over_rate]


def measure(bench: Bench, options: argparse.Namespace) -> Results:
    def the_most(candidates: int) -> Most:
        return bench.most(candidates, options.step_seconds / 5, options.rounds)

    most, long, again = {}, [], {}
    for candidates in (PROMISED, LARGE):
        most[candidates] = the_most(candidates)
        long.append(bench.offer(candidates, most[candidates], 0.5, options.seconds))
        again[candidates] = the_most(candidates)
    most |= {n: the_most(n) for n in EVERY if n not in most}
    over_candidates = [bench.offer(n, most[n], 0.5, options.step_seconds) for n in SIZES]
    over_rate = [bench.offer(PROMISED, most[PROMISED], share, options.step_seconds) for share in SHARES]
    return Results(most, long, again, over_candidates, over_rate)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when a bar is missed; the report is written all the same."""
    options = _arguments(argv)
    path = options.bundle or ensure_bundle()
    bundle = open_bundle(path)
    with tempfile.TemporaryDirectory() as name, redis_with(Path(name), [bundle]) as redis:
        settings = {"CTR_BUNDLE": str(path), "CTR_REDIS_URL": redis.url}
        with serving(Path(name), WORKERS, settings) as server:
            results = measure(Bench(server, bundle), options)
    command = " ".join(["python -m loadtest.scenarios.latency", *(argv if argv is not None else sys.argv[1:])])
    _draw("latency-rate", results.over_rate, "rate")
    _draw("latency-candidates", results.over_candidates, "candidates")
    return report("latency", TITLE, _text(bundle, results), _bars(results), _tables(results), command)


def _text(bundle: Bundle, results: Results) -> str:
    schema = bundle.schema
    sides = " and ".join(
        f"{len([f for f in schema.fields if f.side == s])} {s} fields" for s in ("context", "candidate")
    )
    return (
        f"{bundle.manifest.name}: {sides}, {bundle.manifest.attention} attention. {WORKERS} workers, the vocabulary in "
        f"Redis, one generator (Poisson arrivals); all of them on the same {available_cpus()} cores, none pinned. "
        "Latency counts from the time when a request was meant to be sent, so the generator's own lateness, stated "
        "beside it, is in it. "
        "The same request takes more CPU on cores that are not busy all the time (compare with the closed loop's), "
        "so half of the most is more than half of the cores. "
        f"`most`: a closed loop of {', '.join(map(str, CONNECTIONS))} connections, the best one.\n\n"
        f"{_cores(results.most[SCORED])}\n\n"
        "![p50 and p99 over the rate](latency-rate.svg) ![p50 and p99 over candidates](latency-candidates.svg)"
    )


def _cores(most: Most) -> str:
    """The paper's production on how many cores: one line of arithmetic, from what a request costs here."""
    average = IMPRESSIONS / DAY_S
    peak = average * PEAK
    busy = peak * most.cpu_s
    steps = (
        f"{IMPRESSIONS:,.0f} / {DAY_S:,} s = {average:,.0f}/s",
        f"x {PEAK} at the peak = {peak:,.0f} requests/s of {SCORED} candidates",
        f"x {most.cpu_s * 1e3:.2f} ms of CPU each = {busy:.1f} cores busy",
        f"at half load, as measured here, **{math.ceil(2 * busy)} cores**",
    )
    return f"The paper's production, 400 million impressions a day: {'; '.join(steps)}."


def _bars(results: Results) -> list[Bar]:
    promised = results.long[0]
    p99 = promised.quantiles_ms()[2]
    records = [read.scores(measured.outcome.records) for measured in results.every()]
    wrong = sum(int(one["wrong"].sum()) for one in records)
    checked = sum(int(one["checked"].sum()) for one in records)
    scores = read.scores(promised.outcome.records)
    lost = 1 - len(read.answered(scores)) / len(scores)
    name = f"p99 of {PROMISED} candidates at half of the most, {promised.outcome.load.rate:.0f}/s"
    return [
        Bar(name, f"{p99:.1f} ms", f"< {P99_MS:g} ms", p99 < P99_MS),
        Bar("not answered then", f"{lost:.3%} of {len(scores):,}", f"<= {NOT_ANSWERED:.1%}", lost <= NOT_ANSWERED),
        Bar("wrong scores", f"{wrong} of {checked:,} answers checked", "0", wrong == 0 < checked),
    ]


def _tables(results: Results) -> list[Table]:
    minutes = results.long[0].outcome.load.seconds / 60
    most = [results.most[candidates].row(candidates) for candidates in sorted(results.most)]
    again = [most.row(candidates) for candidates, most in results.again.items()]
    phases = [(str(m.candidates), *m.server.rows()[0][1:], m.server.rows()[1][1]) for m in results.long if m.server]
    return [
        Table(f"{minutes:g} minutes at half of the most", HEADER, [m.row() for m in results.long]),
        Table("The server's own figures of them", ("candidates", "phases, mean ms", "scored, ms"), phases),
        Table("The most", MOST, most),
        Table("The most, right after the long loads", MOST, again),
        Table("Over candidates, at half of the most", HEADER, [m.row() for m in results.over_candidates]),
        Table(f"Over the rate, {PROMISED} candidates", HEADER, [m.row() for m in results.over_rate]),
    ]


def _draw(name: str, measured: Sequence[Measured], over: Literal["rate", "candidates"]) -> None:
    mpl.use("svg")
    plt.rcParams["svg.hashsalt"] = name  # the same figures make the same file
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    x = [m.outcome.load.rate if over == "rate" else m.candidates for m in measured]
    for place, label in ((0, "p50"), (2, "p99")):
        axes.plot(x, [m.quantiles_ms()[place] for m in measured], marker="o", label=label)
    axes.axhline(P99_MS, color="grey", linestyle=":", label=f"{P99_MS:g} ms")
    axes.set_xlabel(f"requests/s of {PROMISED} candidates" if over == "rate" else "candidates of a request")
    axes.set_ylabel("ms from the intended time")
    axes.set_yscale("log")
    if over == "candidates":
        axes.set_xscale("log")
    axes.legend()
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("loadtest.scenarios.latency", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: loadtest/reference_model.py's, made when it is not there")
    parser.add_argument("--seconds", type=float, default=600, help="of each of the two long loads")
    parser.add_argument("--step-seconds", type=float, default=15, help="of each point of the curves")
    parser.add_argument("--rounds", type=int, default=3, help="of the closed loop")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
