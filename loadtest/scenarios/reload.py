"""What does a reload cost those who ask meanwhile? python -m loadtest.scenarios.reload

Two workers and a store of two versions; the same load without and with reloads, in turn.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from loadtest.openloop import records as read
from loadtest.openloop.bodies import prepare
from loadtest.openloop.load import Load, Outcome, begin, run
from loadtest.openloop.message import Prepared
from loadtest.report import Table
from loadtest.scenarios.capacity import capacity
from loadtest.scenarios.versions import TwoVersions, two_versions
from loadtest.servers import Server, ServerFailed, serving
from loadtest.targets import Bar, report

WORKERS = 2
SHARE = 0.4  # of the capacity
RATIO = 1.5  # of p99 with reloads to p99 without
TITLE = "New models under load"


@dataclass(frozen=True)
class Round:
    """reloads_s: how long each took, from the changed pointer until every worker served the new model."""

    outcome: Outcome
    reloads_s: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when a bar is missed; the report is written all the same."""
    options = _arguments(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        versions = two_versions(options.bundle, folder)
        requests = prepare(versions.bundles, {options.candidates: 300}, options.timeout_ms)
        settings = {"CTR_STORE": str(versions.store), "CTR_TIMEOUT_MS": str(options.timeout_ms)}
        with serving(folder, WORKERS, settings) as server:
            step = Load(server.url, options.first_rate, options.step_seconds, options.timeout_ms)
            run(step, requests)  # warms both
            most, _ = capacity(lambda rate: run(_at(step, rate), requests), options.first_rate)
            load = Load(server.url, SHARE * most, options.seconds, options.timeout_ms, check=1.0)
            rounds: dict[bool, list[Round]] = {False: [], True: []}
            for _ in range(options.rounds):
                for reloads in rounds:
                    times = options.reloads if reloads else 0
                    rounds[reloads].append(_round(server, versions, load, requests, times))
    command = " ".join(["python -m loadtest.scenarios.reload", *(argv if argv is not None else sys.argv[1:])])
    return _report(most, rounds, options, command)


def timed_reload(server: Server, versions: TwoVersions) -> float:
    """To the other version; seconds. Raises ServerFailed when it is refused, or is another one."""
    version = versions.other(server.version())
    start_s = time.monotonic()
    versions.activate(version)
    served = server.reload()
    if served != version:
        raise ServerFailed(f"asked for {version}, got {served}")
    return time.monotonic() - start_s


def _round(server: Server, versions: TwoVersions, load: Load, requests: Sequence[Prepared], reloads: int) -> Round:
    took = []
    with begin(load, requests) as running:
        for number in range(reloads):
            due_s = running.begin_s + (number + 0.5) * load.seconds / reloads
            time.sleep(max(0.0, due_s - time.monotonic()))
            took.append(timed_reload(server, versions))
        return Round(running.wait(), took)


def _at(load: Load, rate: float) -> Load:
    return Load(load.url, rate, load.seconds, load.timeout_ms)


def _report(most: float, rounds: dict[bool, list[Round]], options: argparse.Namespace, command: str) -> int:
    rate = SHARE * most
    text = (
        f"{WORKERS} workers and the open-loop generator on the same cores, {options.candidates} candidates, "
        f"{options.timeout_ms} ms to answer, {rate:.0f} requests/s: {SHARE:.0%} of the capacity of {most:.0f}/s. "
        f"{options.seconds:g} s without and {options.seconds:g} s with {options.reloads} reloads, alternating between "
        f"two versions of the model, {options.rounds} times in turn. Every answer is checked against the probabilities "
        "of the version that it names. Latencies in ms from the time when a request was meant to be sent."
    )
    turns = enumerate(zip(rounds[False], rounds[True], strict=True), 1)
    rows = [_row(number, one) for number, turn in turns for one in turn]
    return report("reload", TITLE, text, _bars(rounds), [Table("Rounds", HEADER, rows)], command)


HEADER = (
    "round",
    "reloads",
    "s for one",
    "requests",
    "429, 504, lost",
    "wrong",
    "p50",
    "p99",
    "p99.9",
    "client late p99",
)


def _row(number: int, one: Round) -> list[str]:
    scores = read.scores(one.outcome.records)
    latencies = read.quantiles_ms(read.from_intended_ms(read.answered(scores)), (50, 99, 99.9))
    late = read.quantiles_ms(read.lateness_ms(scores), (99,))[0]
    took = f"{min(one.reloads_s):.1f} to {max(one.reloads_s):.1f}" if one.reloads_s else ""
    failed = f"{read.count(scores, 429)}, {read.count(scores, 504)}, {read.unanswered(scores)}"
    counts = [str(len(scores)), failed, str(int(scores["wrong"].sum()))]
    return [f"{number}", str(len(one.reloads_s)), took, *counts, *(f"{ms:.1f}" for ms in (*latencies, late))]


def _bars(rounds: dict[bool, list[Round]]) -> list[Bar]:
    calm, busy = (read.scores(read.merge([one.outcome.records for one in rounds[r]])) for r in (False, True))
    ratios = [_p99_ms(one) / _p99_ms(other) for other, one in zip(rounds[False], rounds[True], strict=True)]
    failed = len(busy) - read.count(busy, 200)
    wrong = int(calm["wrong"].sum()) + int(busy["wrong"].sum())
    ratio = median(ratios)
    seen = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [
        Bar("p99 with reloads / without, of each round; median", seen, f"<= {RATIO}", ratio <= RATIO),
        Bar("failed requests in the rounds with reloads", str(failed), "0", failed == 0),
        Bar("wrong scores", str(wrong), "0", wrong == 0),
    ]


def _p99_ms(one: Round) -> float:
    accepted = read.answered(read.scores(one.outcome.records))
    return read.quantiles_ms(read.from_intended_ms(accepted), (99,))[0]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("loadtest.scenarios.reload", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--timeout-ms", type=int, default=200)
    parser.add_argument("--first-rate", type=float, default=150, help="requests/s that are surely answered")
    parser.add_argument("--step-seconds", type=float, default=6, help="of each rate on the way to the capacity")
    parser.add_argument("--seconds", type=float, default=60, help="of each load")
    parser.add_argument("--reloads", type=int, default=10, help="in one load")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
