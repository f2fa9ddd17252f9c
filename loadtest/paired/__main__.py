"""Compare the servers of two checkouts of this project: python -m loadtest.paired OTHER_CHECKOUT

The servers of this checkout and of the other one run in pairs, and the order within a pair alternates.
If the machine gets slower or faster during the comparison, both servers are affected alike. Each run starts a new
server, because two starts of the same code also differ, for example in memory layout and hash seed.

The result is the ratio this / other of CPU time per request, throughput and latency, each with a 95% interval. A CPU
ratio below 1 means that this checkout uses less CPU time. The exit code is 1 if a request failed, an answer was wrong,
the two servers' scores differ, or --fail-above is exceeded. It is 2 if the checkouts cannot be compared.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from contract.bundle import BundleError, open_bundle
from contract.golden import largest_difference
from loadtest.openloop.bodies import prepare
from loadtest.paired.checkouts import CannotCompare, Name, Side, Sides, find_checkout, require_same_kernel
from loadtest.paired.runs import CONNECTIONS, Plan, Run, calibrate, measure
from loadtest.paired.summary import Results, check_table, describe, problems_of, ratio_table, schedule
from loadtest.report import write_report
from loadtest.servers import Checkout, ServerFailed
from loadtest.targets import LIBRARIES, RESULTS

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = 200  # number of distinct requests
LOAD_SHARE = 0.5  # share of the slower server's capacity: busy, but never overloaded
TITLE = "Two checkouts, in pairs"


def compare(options: argparse.Namespace) -> Results:
    """Run the comparison.

    Raises:
        BundleError: The bundle cannot be opened.
        CannotCompare: A checkout cannot be run, or a run measured nothing.
        ServerFailed: A server did not start.
    """
    sides: Sides = {
        "this": Side.of(Checkout(ROOT, Path(sys.executable), dict(options.set))),
        "other": Side.of(find_checkout(options.other.resolve())),
    }
    require_same_kernel(sides)
    bundle = open_bundle(options.bundle)
    requests = prepare([bundle], {options.candidates: REQUESTS}, None)
    cpus = assign_cpus(os.sched_getaffinity(0), options.workers)
    plan = Plan(bundle, requests, options.workers, *cpus, options.warm_up, options.seconds, options.rate)
    with pinned(plan.client_cpus):
        found = {name: calibrate(side.checkout, plan) for name, side in sides.items()}
        capacities = {name: per_s for name, (per_s, _) in found.items()}
        if options.load == "open" and plan.rate is None:
            plan = replace(plan, rate=LOAD_SHARE * min(capacities.values()))
        runs = run_pairs(sides, plan, options.pairs)
    both = zip(found["this"][1], found["other"][1], strict=True)
    return Results(sides, plan, capacities, max(largest_difference(*scores).absolute for scores in both), runs)


def run_pairs(sides: Sides, plan: Plan, pairs: int) -> dict[Name, list[Run]]:
    """Measure each checkout `pairs` times, and print the CPU time per request after each pair."""
    runs: dict[Name, list[Run]] = {"this": [], "other": []}
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=2 * pairs)
        for pair, order in enumerate(schedule(pairs), 1):
            for name in order:
                progress.update(task, description=f"pair {pair} of {pairs}: {name}")
                runs[name].append(measure(sides[name].checkout, plan, seed=pair))
                progress.advance(task)
            this_us, other_us = (runs[name][-1].cpu_us for name in ("this", "other"))
            line = f"pair {pair}: CPU µs/request {this_us:,.0f} / {other_us:,.0f} = {this_us / other_us:.3f}"
            progress.console.print(line, highlight=False)
    return runs


def assign_cpus(cpus: Iterable[int], workers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the CPUs that the server and the generator are pinned to.

    The generator gets one CPU. The server gets one of the remaining CPUs per worker, if there are enough. On a machine
    with a single CPU, nothing is pinned.
    """
    *others, last = sorted(cpus)
    return (tuple(others[:workers]), (last,)) if others else ((), ())


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Pin this process, which runs the closed loop itself, to these CPUs. If `cpus` is empty, change nothing."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loadtest.paired", description=__doc__, formatter_class=raw)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="folder; its .venv is used if there is one")
    parser.add_argument("--pairs", type=int, default=30, help="runs of each checkout (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="seconds measured per run (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=2, metavar="S", help="warm-up before each run (%(default)s)")
    parser.add_argument(
        "--load",
        choices=["open", "closed"],
        default="open",
        help="open: both get the same requests at the same times, at --rate; "
        f"closed: {CONNECTIONS} connections that are never idle (default: %(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        help=f"requests/s of the open loop (default: {LOAD_SHARE:.0%}% of the slower server's capacity)",
    )
    parser.add_argument("--candidates", type=int, default=100, help="per request (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes per server (default: %(default)s)")
    demo = ROOT / "deploy" / "demo"
    parser.add_argument("--bundle", type=Path, default=demo, help="bundle for both (default: this checkout's demo)")
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="CTR_NAME=VALUE",
        help="a setting that only the servers of this checkout get; with OTHER_CHECKOUT = ., this measures its cost",
    )
    parser.add_argument(
        "--report", nargs="?", const="paired", metavar="NAME", help=f"also write {RESULTS.name}/NAME.md (paired)"
    )
    parser.add_argument(
        "--fail-above",
        type=float,
        metavar="RATIO",
        help="exit with code 1 if the upper bound of the CPU ratio this / other is above RATIO",
    )
    options = parser.parse_args(argv)
    if not options.other.is_dir():
        parser.error(f"OTHER_CHECKOUT: {options.other} is not a folder")
    if options.pairs < 2:
        parser.error("--pairs must be 2 or more, to compute an interval")
    if options.load == "closed" and options.rate is not None:
        parser.error("--rate requires --load open, because a closed loop sends as fast as the server answers")
    for name in ("seconds", "rate", "candidates", "workers", "fail_above"):
        if (value := getattr(options, name)) is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')}: {value:g} is not above 0")
    if options.warm_up < 0:
        parser.error(f"--warm-up: {options.warm_up:g} is below 0")
    return options


def setting(text: str) -> tuple[str, str]:
    """Return the name and the value in CTR_NAME=VALUE. Raises ArgumentTypeError if it has another form."""
    name, separator, value = text.partition("=")
    if not separator or not name.startswith("CTR_"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a setting. Write CTR_NAME=VALUE.")
    return name, value


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 1 if answers were wrong or too slow, 2 if the checkouts cannot be compared, or 130 after Ctrl-C."""
    options = parse_arguments(argv)
    command = shlex.join(["python", "-m", "loadtest.paired", *(argv if argv is not None else sys.argv[1:])])
    try:
        results = compare(options)
    except (BundleError, CannotCompare, ServerFailed) as error:
        print(f"paired: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("paired: interrupted; the servers have been stopped", file=sys.stderr)
        return 130
    path = RESULTS / f"{options.report}.md" if options.report else None
    write_report(path, TITLE, describe(results), [ratio_table(results), check_table(results)], LIBRARIES, command)
    problems = problems_of(results, options.fail_above)
    for problem in problems:
        print(f"paired: FAIL: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM stops the servers too, like Ctrl-C
    sys.exit(main())
