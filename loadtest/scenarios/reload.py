"""Latency while new models are loaded: python -m loadtest.scenarios.reload

The server runs two workers, with a store that contains two versions. The same load runs alternately without and with
reloads.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from loadtest.openloop import records as read
from loadtest.openloop.bodies import prepare
from loadtest.openloop.load import Load, Outcome, begin, run
from loadtest.openloop.message import Prepared
from loadtest.report import Table
from loadtest.scenarios.capacity import find_capacity
from loadtest.scenarios.versions import TwoVersions, two_versions
from loadtest.servers import Server, ServerFailed, serving
from loadtest.targets import Target, report

WORKERS = 2
SHARE = 0.4  # offered share of the capacity
MAX_RATIO = 1.5  # p99 with reloads / p99 without
TITLE = "New models under load"


@dataclass(frozen=True)
class Round:
    """One load. reloads_s: seconds from each change of the store's pointer until all workers serve the new model."""

    outcome: Outcome
    reloads_s: list[float]

    def scores(self) -> read.Records:
        return read.scores(self.outcome.records)

    def quantiles_ms(self, percents: Sequence[float]) -> list[float]:
        """Return quantiles of the answers' latency from the intended time."""
        return read.quantiles_ms(read.from_intended_ms(read.answered(self.scores())), percents)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report. Return 1 if a target fails."""
    options = parse_arguments(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        versions = two_versions(options.bundle, folder)
        requests = prepare(versions.bundles, {options.candidates: 300}, options.timeout_ms)
        settings = {"CTR_STORE": str(versions.store), "CTR_TIMEOUT_MS": str(options.timeout_ms)}
        with serving(folder, WORKERS, settings) as server:
            step = Load(server.url, options.first_rate, options.step_seconds, options.timeout_ms)
            run(step, requests)  # warms up server and client
            capacity, _ = find_capacity(lambda rate: run(replace(step, rate=rate), requests), options.first_rate)
            load = Load(server.url, SHARE * capacity, options.seconds, options.timeout_ms, check=1.0)
            rounds: dict[bool, list[Round]] = {False: [], True: []}
            for _ in range(options.rounds):
                for reloads in rounds:
                    number = options.reloads if reloads else 0
                    rounds[reloads].append(run_round(server, versions, load, requests, number))
    command = " ".join(["python -m loadtest.scenarios.reload", *(argv if argv is not None else sys.argv[1:])])
    numbered = enumerate(zip(rounds[False], rounds[True], strict=True), 1)
    rows = [row(number, round_) for number, both in numbered for round_ in both]
    tables = [Table("Rounds", HEADER, rows)]
    return report("reload", TITLE, describe(capacity, options), targets_of(rounds), tables, command)


def timed_reload(server: Server, versions: TwoVersions) -> float:
    """Switch to the other version and return the seconds until all workers serve it.

    Raises:
        ServerFailed: The server refused the version, or is serving a different one.
    """
    version = versions.other(server.version())
    start_s = time.monotonic()
    versions.activate(version)
    served = server.reload()
    if served != version:
        raise ServerFailed(f"version {version} was activated, but the server is serving {served}")
    return time.monotonic() - start_s


def run_round(server: Server, versions: TwoVersions, load: Load, requests: Sequence[Prepared], reloads: int) -> Round:
    """Run one load with `reloads` reloads, evenly spaced over its duration."""
    reloads_s = []
    with begin(load, requests) as running:
        for number in range(reloads):
            due_s = running.begin_s + (number + 0.5) * load.seconds / reloads
            time.sleep(max(0.0, due_s - time.monotonic()))
            reloads_s.append(timed_reload(server, versions))
        return Round(running.wait(), reloads_s)


def describe(capacity: float, options: argparse.Namespace) -> str:
    """Return the report's paragraph: what was run and how it was measured."""
    return (
        f"{WORKERS} workers and the open-loop generator on the same cores, {options.candidates} candidates, "
        f"a deadline of {options.timeout_ms} ms, {SHARE * capacity:.0f} requests/s ({SHARE:.0%} of the capacity of "
        f"{capacity:.0f}/s). {options.seconds:g} s without and {options.seconds:g} s with {options.reloads} reloads, "
        f"which switch between two versions of the model; {options.rounds} rounds. Every answer is checked against "
        "the probabilities of the version named in it. Latencies are in ms from the intended time."
    )


HEADER = (
    "round",
    "reloads",
    "s a reload",
    "requests",
    "429, 504, lost",
    "wrong",
    "p50",
    "p99",
    "p99.9",
    "client late p99",
)


def row(number: int, round_: Round) -> list[str]:
    scores = round_.scores()
    latencies = round_.quantiles_ms((50, 99, 99.9))
    late = read.quantiles_ms(read.lateness_ms(scores), (99,))[0]
    seconds = f"{min(round_.reloads_s):.1f} to {max(round_.reloads_s):.1f}" if round_.reloads_s else ""
    failed = f"{read.count(scores, 429)}, {read.count(scores, 504)}, {read.unanswered(scores)}"
    counts = [str(len(scores)), failed, str(int(scores["wrong"].sum()))]
    return [f"{number}", str(len(round_.reloads_s)), seconds, *counts, *(f"{ms:.1f}" for ms in (*latencies, late))]


def targets_of(rounds: dict[bool, list[Round]]) -> list[Target]:
    without, with_reloads = (read.merge([round_.scores() for round_ in rounds[reloads]]) for reloads in (False, True))
    both = zip(rounds[True], rounds[False], strict=True)
    ratios = [busy.quantiles_ms((99,))[0] / calm.quantiles_ms((99,))[0] for busy, calm in both]
    failed = len(with_reloads) - read.count(with_reloads, 200)
    wrong = int(without["wrong"].sum()) + int(with_reloads["wrong"].sum())
    ratio = median(ratios)
    measured = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [
        Target("p99 with reloads / without, median over rounds", measured, f"<= {MAX_RATIO}", ratio <= MAX_RATIO),
        Target("failed requests in the rounds with reloads", str(failed), "0", failed == 0),
        Target("wrong scores", str(wrong), "0", wrong == 0),
    ]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loadtest.scenarios.reload", description=__doc__, formatter_class=raw)
    parser.add_argument("--bundle", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--candidates", type=int, default=100, help="candidates per request")
    parser.add_argument("--timeout-ms", type=int, default=200, help="deadline of each request")
    parser.add_argument("--first-rate", type=float, default=150, help="requests/s that the server can handle")
    parser.add_argument("--step-seconds", type=float, default=6, help="duration of each step of the capacity search")
    parser.add_argument("--seconds", type=float, default=60, help="duration of each load run in seconds")
    parser.add_argument("--reloads", type=int, default=10, help="reloads during each load run")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
