"""Show the whole loop on this machine: python -m loadtest.loop.demo, or `make loop-demo`

Starts the service and ctr-collect, sends them simulated traffic, joins their logs with ctr-join, and compares every row
of the joined log with what the simulation knows. All files are left in the output folder.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from loadtest.loop.check import balance_differences, read_balance, read_joined, read_lines, row_differences
from loadtest.loop.daemon import Daemon, running
from loadtest.loop.drive import Addresses, Driver, TrafficFailed
from loadtest.servers import ServerFailed, without_settings
from model.data.synthetic.traffic import Behavior, Traffic
from model.data.synthetic.traffic_truth import Truth, balance, received

# Minutes and hours of real traffic become seconds, so that the demo takes about a minute.
WINDOW_S, LATENESS_S = 5, 10
BEHAVIOR = Behavior(users=500, click_s=1.0, conversion_s=2.0, late_s=3.0, late_share=0.02, resent_share=0.03)
SAMPLE = 0.8
LOG, EVENTS, JOINED = "requests", "events", "joined"
MARKER = "loop-demo.txt"  # a folder with this file may be replaced


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Return 1 if the joined log is wrong, and 2 if the demo could not run."""
    options = parse_arguments(argv)
    try:
        new_output(options.out)
        return run(options.out, options.bundle, options.requests, options.rate, options.seed)
    except (OSError, ValueError, ServerFailed, TrafficFailed) as error:
        print(f"loop-demo: {error}", file=sys.stderr)
        return 2


def run(out: Path, bundle: Path, requests: int, rate: float, seed: int) -> int:
    """Run the demo in a new folder. Return 0 if the joined log is right, else 1."""
    print(
        f"scaled down: a click counts for {WINDOW_S} s instead of 30 minutes, an hour stays open for {LATENESS_S} s "
        f"instead of 24 hours, and users click after about {BEHAVIOR.click_s:g} s instead of 20 s. {SAMPLE:.0%} of the "
        "users are in the request log.",
        flush=True,
    )
    service, collect = daemons(out, bundle)
    with running(service, collect):
        print(f"serving at {service.url}, collecting events at {collect.url}", flush=True)
        start_s = time.monotonic()
        driver = drive(Addresses(service.url, collect.url), requests, rate, seed)
        sent_s = time.monotonic() - start_s
        service.stop()
        collect.stop()
    truth = driver.truth
    truth.sent = received(truth.sent, read_lines(out / EVENTS))
    print(f"sent {requests:,} requests and {len(truth.sent):,} events in {sent_s:.0f} s", flush=True)
    report = join(out, out / JOINED)
    print(report.stdout + report.stderr, end="")
    if report.returncode != 0:
        raise ServerFailed(f"ctr-join exited with code {report.returncode}")
    problems = compare(truth, out / JOINED)
    for line in problems:
        print(line, file=sys.stderr)
    events = truth.events(WINDOW_S, LATENESS_S)
    clicked = events.filter(type="click", category="joined")
    rows = events.filter(type="impression", category="joined")
    verdict = "differs from" if problems else "equals"
    print(
        f"{len(rows):,} impressions and {len(clicked):,} clicks: the joined log {verdict} the simulation, row by row. "
        f"Look at {out}/."
    )
    return int(bool(problems))


def daemons(out: Path, bundle: Path) -> tuple[Daemon, Daemon]:
    """Return the service and ctr-collect, which write their logs to a folder."""
    service = {
        "CTR_BUNDLE": str(bundle),
        "CTR_WORKERS": "1",
        "CTR_REQUEST_LOG": str(out / LOG),
        "CTR_REQUEST_LOG_SAMPLE": str(SAMPLE),
    }
    collect = {"CTR_COLLECT_FOLDER": str(out / EVENTS)}
    return (
        Daemon("service", "CTR_", service, out / "service.log"),
        Daemon("service.collect", "CTR_COLLECT_", collect, out / "collect.log"),
    )


def drive(addresses: Addresses, requests: int, rate: float, seed: int) -> Driver:
    """Send traffic until all events have been sent that are due a few seconds after the last answer."""
    now_s = time.time()
    traffic = Traffic(seed, now_s, BEHAVIOR)
    driver = Driver(traffic, addresses)
    planned = traffic.requests(now_s + np.arange(requests) / rate)
    asyncio.run(driver.run(planned, rate, linger_s=2 * BEHAVIOR.late_s))
    return driver


def join(out: Path, joined: Path) -> "subprocess.CompletedProcess[str]":
    """Run ctr-join as if it were two hours later, so that all hours are final."""
    return subprocess.run(  # noqa: S603
        join_command(out, joined, datetime.now(UTC) + timedelta(hours=2)),
        env=without_settings(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )


def join_command(out: Path, joined: Path, until: datetime | None) -> list[str]:
    """Return the command that joins the logs in a folder."""
    command = [sys.executable, "-m", "model.cli.join", str(out / LOG), str(out / EVENTS), "--out", str(joined)]
    command += ["--window", f"{WINDOW_S}s", "--lateness", f"{LATENESS_S}s"]
    return command if until is None else [*command, "--until", until.isoformat(timespec="seconds")]


def compare(truth: Truth, joined: Path, requests: Collection[str] | None = None) -> list[str]:
    """Return how a joined log differs from what the simulation knows, or [] if all rows and numbers are equal.

    Args:
        truth: What the simulation knows, with the events that ctr-collect received.
        joined: The joined log.
        requests: See Truth.events().
    """
    events = truth.events(WINDOW_S, LATENESS_S, requests)
    rows = truth.joined(events)
    return [
        *row_differences(rows, read_joined(joined, rows.columns)),
        *balance_differences(balance(events), read_balance(joined)),
    ]


def new_output(out: Path) -> None:
    """Create an empty output folder. An earlier demo's folder is replaced.

    Raises:
        ValueError: The folder contains something else.
    """
    if out.exists():
        if any(out.iterdir()) and not (out / MARKER).is_file():
            raise ValueError(f"--out {out}: the folder contains files of something else. Choose another folder.")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).write_text("Written by python -m loadtest.loop.demo, which replaces this folder.\n")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loadtest.loop.demo", description=__doc__, formatter_class=raw)
    parser.add_argument("--bundle", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/loop-demo"), help="output folder, which is replaced")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=50.0, help="requests/s")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same users and requests")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
