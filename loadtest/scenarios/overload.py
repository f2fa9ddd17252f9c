"""Goodput of a server that gets more requests than it can answer: python -m loadtest.scenarios.overload

One worker runs on one core and the generator on another. The test first finds the server's capacity, and then offers
one, two and three times that rate in turn.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from contract.bundle import open_bundle
from loadtest.openloop import records as read
from loadtest.openloop.bodies import prepare
from loadtest.openloop.load import Load, Outcome, run
from loadtest.openloop.message import Prepared
from loadtest.report import Table
from loadtest.scenarios.capacity import find_capacity, goodput
from loadtest.servers import Server, serving
from loadtest.targets import Target, report

FACTORS = (1, 2, 3)
GOODPUT = 0.9  # share of the capacity, at the highest factor
REFUSAL_MS = 20.0  # p99 of a refusal
SERVER_CPU, CLIENT_CPU = 0, 1
CONNECTIONS = 256
TITLE = "Overload"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report. Return 1 if a target fails."""
    options = parse_arguments(argv)
    requests = prepare([open_bundle(options.bundle)], {options.candidates: 300}, options.timeout_ms)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"CTR_BUNDLE": str(options.bundle), "CTR_TIMEOUT_MS": str(options.timeout_ms)}
        with serving(Path(folder), 1, settings, (SERVER_CPU,)) as server:
            offer = partial(offer_rate, server, requests, options.timeout_ms)
            offer(options.first_rate, options.step_seconds)  # warms up server and client
            capacity, steps = find_capacity(lambda rate: offer(rate, options.step_seconds), options.first_rate)
            rounds: dict[int, list[Outcome]] = {factor: [] for factor in FACTORS}
            for _ in range(options.rounds):
                for factor in FACTORS:
                    rounds[factor].append(offer(factor * capacity, options.seconds))
    command = " ".join(["python -m loadtest.scenarios.overload", *(argv if argv is not None else sys.argv[1:])])
    capacity_rows = [(f"{step.offered:.0f}", f"{step.goodput:.0f}", f"{step.client_cpu:.0%}") for step in steps]
    tables = [
        Table("Answers", ANSWERS, [answers_row(factor, rounds[factor], capacity) for factor in FACTORS]),
        Table("Refusals and the client", REFUSALS, [refusals_row(factor, rounds[factor]) for factor in FACTORS]),
        Table("Capacity", ("offered/s", "goodput/s", "client CPU"), capacity_rows),
    ]
    targets = targets_of(capacity, rounds, options.timeout_ms)
    return report("overload", TITLE, describe(capacity, options), targets, tables, command)


def offer_rate(server: Server, requests: Sequence[Prepared], timeout_ms: int, rate: float, seconds: float) -> Outcome:
    load = Load(server.url, rate, seconds, timeout_ms, connections=CONNECTIONS, check=0.05, cpus=(CLIENT_CPU,))
    return run(load, requests)


def describe(capacity: float, options: argparse.Namespace) -> str:
    """Return the report's paragraph: what was run and how it was measured."""
    return (
        f"One worker on core {SERVER_CPU}, an open-loop generator (Poisson arrivals) on core {CLIENT_CPU}; "
        f"{options.candidates} candidates, {options.timeout_ms} ms to answer. Goodput: 200s within the deadline per "
        f"second. Capacity: the highest goodput over rising rates, median of three loads: {capacity:.0f}/s. "
        f"Each load ran {options.rounds} times for {options.seconds:g} s, alternately. Latencies in ms: `sent` counts "
        "from the time when a request was sent, `intended` from the time when it was meant to be, which includes the "
        "client's lateness."
    )


ANSWERS = (
    "offered", "offered/s", "goodput/s", "of capacity", "p50 sent", "p99 sent", "p50 intended", "p99 intended",
    "accepted in time",
)  # fmt: skip
REFUSALS = ("offered", "429", "p50 of a 429", "p99 of a 429", "504", "lost", "client late p99", "client CPU", "wrong")


def answers_row(factor: int, outcomes: Sequence[Outcome], capacity: float) -> list[str]:
    scores, seconds = scores_of(outcomes), sum(outcome.load.seconds for outcome in outcomes)
    accepted = read.answered(scores)
    sent = read.quantiles_ms(read.from_sent_ms(accepted), (50, 99))
    intended = read.quantiles_ms(read.from_intended_ms(accepted), (50, 99))
    rate = mean_goodput(outcomes)
    in_time = read.good(scores) / max(1, len(accepted))
    figures = [f"{len(scores) / seconds:.0f}", f"{rate:.0f}", f"{rate / capacity:.0%}"]
    return [f"{factor}x", *figures, *(f"{ms:.1f}" for ms in (*sent, *intended)), f"{in_time:.2%}"]


def refusals_row(factor: int, outcomes: Sequence[Outcome]) -> list[str]:
    scores = scores_of(outcomes)
    refused = scores.compress(scores["status"] == 429)
    quantiles = read.quantiles_ms(read.from_sent_ms(refused), (50, 99))
    late = read.quantiles_ms(read.lateness_ms(scores), (99,))[0]
    cpu = float(np.mean([outcome.client_cpu for outcome in outcomes]))
    return [
        f"{factor}x",
        f"{len(refused) / len(scores):.1%}",
        *(f"{ms:.1f}" for ms in quantiles),
        f"{read.count(scores, 504) / len(scores):.2%}",
        str(read.unanswered(scores)),
        f"{late:.1f}",
        f"{cpu:.0%}",
        str(int(scores["wrong"].sum())),
    ]


def targets_of(capacity: float, rounds: dict[int, list[Outcome]], timeout_ms: int) -> list[Target]:
    highest, factor = rounds[FACTORS[-1]], FACTORS[-1]
    scores = scores_of(highest)
    share = mean_goodput(highest) / capacity
    p99 = read.quantiles_ms(read.from_sent_ms(read.answered(scores)), (99,))[0]
    refusal = read.quantiles_ms(read.from_sent_ms(scores.compress(scores["status"] == 429)), (99,))[0]
    wrong = sum(int(outcome.records["wrong"].sum()) for outcomes in rounds.values() for outcome in outcomes)
    return [
        Target(f"goodput at {factor}x, of capacity", f"{share:.0%}", f">= {GOODPUT:.0%}", share >= GOODPUT),
        Target(f"p99 of the 200s at {factor}x", f"{p99:.1f} ms", f"<= {timeout_ms} ms", p99 <= timeout_ms),
        Target(f"p99 of a 429 at {factor}x", f"{refusal:.1f} ms", f"<= {REFUSAL_MS:g} ms", refusal <= REFUSAL_MS),
        Target("wrong scores, of those checked", str(wrong), "0", wrong == 0),
    ]


def mean_goodput(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([goodput(outcome) for outcome in outcomes]))


def scores_of(outcomes: Sequence[Outcome]) -> read.Records:
    """Return the records of all loads, without hostile requests."""
    return read.scores(read.merge([outcome.records for outcome in outcomes]))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loadtest.scenarios.overload", description=__doc__, formatter_class=raw)
    parser.add_argument("--bundle", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--candidates", type=int, default=100, help="candidates per request")
    parser.add_argument("--timeout-ms", type=int, default=50, help="deadline of each request")
    parser.add_argument("--first-rate", type=float, default=150, help="requests/s that the server can handle")
    parser.add_argument("--step-seconds", type=float, default=8, help="duration of each step of the capacity search")
    parser.add_argument("--seconds", type=float, default=20, help="duration of each load")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
