"""Does a server that is asked for too much still do what it can? python -m loadtest.scenarios.overload

One worker on one core, the generator on another. First its capacity, then one, two and three times of it, in turn.
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
from loadtest.scenarios.capacity import Step, capacity, goodput
from loadtest.servers import Server, serving
from loadtest.targets import Bar, report

FACTORS = (1, 2, 3)
GOODPUT = 0.9  # of the capacity, at the highest factor
QUICK_MS = 20.0  # p99 of a refusal
SERVER_CPU, CLIENT_CPU = 0, 1
CONNECTIONS = 256
TITLE = "A server that is asked for more than it can do"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when a bar is missed; the report is written all the same."""
    options = _arguments(argv)
    requests = prepare([open_bundle(options.bundle)], {options.candidates: 300}, options.timeout_ms)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"CTR_BUNDLE": str(options.bundle), "CTR_TIMEOUT_MS": str(options.timeout_ms)}
        with serving(Path(folder), 1, settings, (SERVER_CPU,)) as server:
            offer = partial(_offer, server, requests, options.timeout_ms)
            offer(options.first_rate, options.step_seconds)  # warms both
            most, steps = capacity(lambda rate: offer(rate, options.step_seconds), options.first_rate)
            rounds: dict[int, list[Outcome]] = {factor: [] for factor in FACTORS}
            for _ in range(options.rounds):
                for factor in FACTORS:
                    rounds[factor].append(offer(factor * most, options.seconds))
    command = " ".join(["python -m loadtest.scenarios.overload", *(argv if argv is not None else sys.argv[1:])])
    return _report(most, steps, rounds, options, command)


def _offer(server: Server, requests: Sequence[Prepared], timeout_ms: int, rate: float, seconds: float) -> Outcome:
    load = Load(server.url, rate, seconds, timeout_ms, connections=CONNECTIONS, check=0.05, cpus=(CLIENT_CPU,))
    return run(load, requests)


def _report(
    most: float, steps: list[Step], rounds: dict[int, list[Outcome]], options: argparse.Namespace, command: str
) -> int:
    text = (
        f"One worker on core {SERVER_CPU}, an open-loop generator (Poisson arrivals) on core {CLIENT_CPU}; "
        f"{options.candidates} candidates, {options.timeout_ms} ms to answer. Goodput: answers with scores within the "
        f"deadline, per second. Capacity, the best of rising rates, taken three times (median): {most:.0f}/s. "
        f"Each load ran {options.rounds} times for {options.seconds:g} s, in turn. Latencies in ms; `sent` counts from "
        "the time when a request was sent, `intended` from when it was meant to be, so that a late client counts, too."
    )
    capacity_rows = [(f"{s.offered:.0f}", f"{s.goodput:.0f}", f"{s.client_cpu:.0%}") for s in steps]
    tables = [
        Table("Answers", ANSWERS, [_answers_row(f, rounds[f], most) for f in FACTORS]),
        Table("Refusals and the client", REFUSALS, [_refusals_row(f, rounds[f]) for f in FACTORS]),
        Table("Capacity", ("offered/s", "goodput/s", "client CPU"), capacity_rows),
    ]
    return report("overload", TITLE, text, _bars(most, rounds, options.timeout_ms), tables, command)


ANSWERS = (
    "offered", "offered/s", "goodput/s", "of capacity", "p50 sent", "p99 sent", "p50 intended", "p99 intended",
    "accepted in time",
)  # fmt: skip
REFUSALS = ("offered", "429", "p50 of a 429", "p99 of a 429", "504", "lost", "client late p99", "client CPU", "wrong")


def _answers_row(factor: int, outcomes: Sequence[Outcome], most: float) -> list[str]:
    scores, seconds = _scores(outcomes), sum(outcome.load.seconds for outcome in outcomes)
    accepted = read.answered(scores)
    sent = read.quantiles_ms(read.from_sent_ms(accepted), (50, 99))
    intended = read.quantiles_ms(read.from_intended_ms(accepted), (50, 99))
    rate = _goodput(outcomes)
    in_time = read.good(scores) / max(1, len(accepted))
    figures = [f"{len(scores) / seconds:.0f}", f"{rate:.0f}", f"{rate / most:.0%}"]
    return [f"{factor}x", *figures, *(f"{ms:.1f}" for ms in (*sent, *intended)), f"{in_time:.2%}"]


def _refusals_row(factor: int, outcomes: Sequence[Outcome]) -> list[str]:
    scores = _scores(outcomes)
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


def _bars(most: float, rounds: dict[int, list[Outcome]], timeout_ms: int) -> list[Bar]:
    highest = rounds[FACTORS[-1]]
    scores = _scores(highest)
    share = _goodput(highest) / most
    p99 = read.quantiles_ms(read.from_sent_ms(read.answered(scores)), (99,))[0]
    refusal = read.quantiles_ms(read.from_sent_ms(scores.compress(scores["status"] == 429)), (99,))[0]
    wrong = sum(int(outcome.records["wrong"].sum()) for outcomes in rounds.values() for outcome in outcomes)
    return [
        Bar(f"goodput at {FACTORS[-1]}x, of capacity", f"{share:.0%}", f">= {GOODPUT:.0%}", share >= GOODPUT),
        Bar(f"p99 of what is accepted at {FACTORS[-1]}x", f"{p99:.1f} ms", f"<= {timeout_ms} ms", p99 <= timeout_ms),
        Bar(f"p99 of a 429 at {FACTORS[-1]}x", f"{refusal:.1f} ms", f"<= {QUICK_MS:g} ms", refusal <= QUICK_MS),
        Bar("wrong scores, of those checked", str(wrong), "0", wrong == 0),
    ]


def _goodput(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([goodput(outcome) for outcome in outcomes]))


def _scores(outcomes: Sequence[Outcome]) -> read.Records:
    return read.scores(read.merge([outcome.records for outcome in outcomes]))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("loadtest.scenarios.overload", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--timeout-ms", type=int, default=50)
    parser.add_argument("--first-rate", type=float, default=150, help="requests/s that are surely answered")
    parser.add_argument("--step-seconds", type=float, default=8, help="of each rate on the way to the capacity")
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
