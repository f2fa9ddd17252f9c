"""Ten minutes of load with all kinds of failures: python -m loadtest.scenarios.soak

Two workers, Redis and the generator share the same cores. The test first finds the server's capacity, and then offers
70% of it, with requests of many sizes and 1% hostile requests. During the load, Redis is killed and frozen, models are
replaced, and a worker is killed.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.openloop.bodies import prepare
from loadtest.openloop.hostile import hostile_requests
from loadtest.openloop.load import Load, Outcome, begin, run
from loadtest.scenarios.capacity import find_capacity
from loadtest.scenarios.soak_report import write
from loadtest.scenarios.timeline import History, Timeline
from loadtest.scenarios.versions import two_versions
from loadtest.servers import redis_with, serving

WORKERS = 2
SHARE = 0.7  # offered share of the capacity
HOSTILE = 0.01  # share of the requests
MIX = {1: 75, 10: 60, 100: 105, 300: 60}  # number of candidates -> number of requests; 97 candidates on average
STEP_S = 6.0


@dataclass(frozen=True)
class Soaked:
    """The results of a soak.

    Args:
        capacity: Answers/s within the deadline, measured before the soak.
        exit_code: The server's exit code.
    """

    capacity: float
    outcome: Outcome
    history: History
    exit_code: int


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report. Return 1 if a target fails."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loadtest.scenarios.soak", description=__doc__, formatter_class=raw)
    parser.add_argument("--bundle", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--minutes", type=float, default=10, help="2 or more, because the failures take that long")
    parser.add_argument("--timeout-ms", type=int, default=100, help="deadline of each request")
    parser.add_argument("--first-rate", type=float, default=150, help="requests/s that the server can handle")
    options = parser.parse_args(argv)
    command = " ".join(["python -m loadtest.scenarios.soak", *(argv if argv is not None else sys.argv[1:])])
    soaked = soak(options.bundle, options.minutes * 60, options.timeout_ms, options.first_rate)
    return write(WORKERS, soaked.capacity, soaked.outcome, soaked.history, soaked.exit_code, command)


def soak(bundle: Path, seconds: float, timeout_ms: int, first_rate: float) -> Soaked:
    """Run the soak.

    Args:
        seconds: Duration of the load, without the capacity search.
        first_rate: Requests/s that the server can handle.

    Raises:
        ServerFailed: The server or Redis did not start, or a reload was refused. In this case, no report is written.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        versions = two_versions(bundle, folder)
        requests = prepare(versions.bundles, MIX, timeout_ms)
        with redis_with(folder, versions.bundles) as redis:
            settings = {
                "CTR_STORE": str(versions.store),
                "CTR_REDIS_URL": redis.url,
                "CTR_TIMEOUT_MS": str(timeout_ms),
            }
            with serving(folder, WORKERS, settings) as server:

                def offer(rate: float) -> Outcome:
                    return run(Load(server.url, rate, STEP_S, timeout_ms, check=1.0), requests)

                offer(first_rate)  # warms up server and client
                capacity, _ = find_capacity(offer, first_rate)
                load = Load(server.url, SHARE * capacity, seconds, timeout_ms, check=1.0, hostile=HOSTILE)
                with begin(load, requests, hostile_requests()) as running:
                    history = Timeline(server, redis, versions, running.begin_s, seconds).run()
                    outcome = running.wait()
                return Soaked(capacity, outcome, history, server.stop())


if __name__ == "__main__":
    sys.exit(main())
