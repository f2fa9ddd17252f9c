"""Command line of the open-loop load test: python -m loadtest.openloop --rate 500 (see loadtest/openloop/load.py)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.bundle import open_bundle
from loadtest.openloop import load as open_loop
from loadtest.openloop.arrivals import CURVES
from loadtest.openloop.bodies import prepare
from loadtest.openloop.hostile import hostile_requests
from loadtest.openloop.load import Load, Outcome, find_max, passes, run, summary
from loadtest.openloop.phases import scrape, server_times


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load and print its results. Return 1 if an answer was wrong."""
    options = parse_arguments(argv)
    requests = prepare([open_bundle(options.bundle)], {options.candidates: 300}, options.timeout_ms)
    hostile = hostile_requests() if options.hostile else []
    metrics_url = options.metrics_url or f"{options.url.rstrip('/')}/metrics"
    wrong = 0

    def offer(rate: float) -> Outcome:
        nonlocal wrong
        load = Load(
            options.url, rate, options.seconds, options.timeout_ms, options.processes, options.connections,
            options.check, options.hostile, options.seed, tuple(options.cpus), profile=options.profile,
        )  # fmt: skip
        before = scrape(metrics_url)
        outcome = run(load, requests, hostile)
        times = server_times(before, scrape(metrics_url))
        wrong += int(outcome.records["wrong"].sum())
        rows = summary(outcome) + (times.rows() if times else [])
        print("\n".join(f"{name:>28}  {figure}" for name, figure in rows), *outcome.examples, "", sep="\n")
        return outcome

    if options.find_max:
        found = find_max(lambda rate: passes(offer(rate), options.slo_p99_ms), options.rate)
        print(f"p99 is within {options.slo_p99_ms:g} ms up to {found:.0f} requests/s")
    else:
        offer(options.rate)
    return 1 if wrong else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loadtest.openloop", description=open_loop.__doc__, formatter_class=raw)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--metrics-url", help="URL of the server's metrics (default: --url with /metrics)")
    parser.add_argument("--bundle", type=Path, default=Path("deploy/demo"), help="bundle that the server serves")
    parser.add_argument("--rate", type=float, default=500, help="requests/s; with --find-max, the first rate to try")
    parser.add_argument("--profile", choices=list(CURVES), default="steady", help="how the rate varies around its mean")
    parser.add_argument("--seconds", type=float, default=30, help="duration of each load run in seconds")
    parser.add_argument("--candidates", type=int, default=100, help="candidates per request")
    parser.add_argument("--timeout-ms", type=int, default=50, help="deadline of each request")
    parser.add_argument("--processes", type=int, default=1, help="generator processes")
    parser.add_argument("--connections", type=int, default=64, help="maximum connections per process")
    parser.add_argument("--check", type=float, default=0.05, help="share of answers whose scores are checked")
    parser.add_argument("--hostile", type=float, default=0.0, help="share of malformed and malicious requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cpus", type=int, nargs="*", default=[], help="CPUs to pin the generators to (default: any)")
    parser.add_argument("--find-max", action="store_true", help="search for the highest rate that meets --slo-p99-ms")
    parser.add_argument("--slo-p99-ms", type=float, default=10, help="with --find-max: maximum p99")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
