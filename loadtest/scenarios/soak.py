"""Ten minutes of load during which everything goes wrong: python -m loadtest.scenarios.soak

Two workers, Redis and the generator on the same cores, at 70% of the capacity that is measured first, with requests of
many sizes and some that no honest client sends.
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
from loadtest.openloop.message import Prepared
from loadtest.scenarios.capacity import capacity
from loadtest.scenarios.soak_report import write
from loadtest.scenarios.timeline import History, Timeline
from loadtest.scenarios.versions import two_versions
from loadtest.servers import Server, redis_with, serving

WORKERS = 2
SHARE = 0.7  # of the capacity
HOSTILE = 0.01  # of the requests
MIX = {1: 75, 10: 60, 100: 105, 300: 60}  # candidates -> requests: 97 on average
STEP_S = 6.0


@dataclass(frozen=True)
class Soaked:
    capacity: float
    outcome: Outcome
    history: History
    exit_code: int


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when a bar is missed; the report is written all the same."""
    options = _arguments(argv)
    command = " ".join(["python -m loadtest.scenarios.soak", *(argv if argv is not None else sys.argv[1:])])
    soaked = soak(options.bundle, options.minutes * 60, options.timeout_ms, options.first_rate)
    return write(WORKERS, soaked.capacity, soaked.outcome, soaked.history, soaked.exit_code, command)


def soak(bundle: Path, seconds: float, timeout_ms: int, first_rate: float) -> Soaked:
    """Raises ServerFailed where the report would be about nothing: no start, a reload refused."""
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
                most = _capacity(server, requests, timeout_ms, first_rate)
                load = Load(server.url, SHARE * most, seconds, timeout_ms, check=1.0, hostile=HOSTILE)
                with begin(load, requests, hostile_requests()) as running:
                    history = Timeline(server, redis, versions, running.begin_s, seconds).run()
                    outcome = running.wait()
                return Soaked(most, outcome, history, server.end())


def _capacity(server: Server, requests: Sequence[Prepared], timeout_ms: int, first_rate: float) -> float:
    def offer(rate: float) -> Outcome:
        return run(Load(server.url, rate, STEP_S, timeout_ms, check=1.0), requests)

    offer(first_rate)  # warms both
    return capacity(offer, first_rate)[0]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("loadtest.scenarios.soak", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--minutes", type=float, default=10, help="2 or more: all that happens takes that long")
    parser.add_argument("--timeout-ms", type=int, default=100)
    parser.add_argument("--first-rate", type=float, default=150, help="requests/s that are surely answered")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
