"""Kill the service, ctr-collect and ctr-join, and check that nothing is lost: python -m loadtest.loop.crashes

While simulated traffic is running, one of them after the other is killed with SIGKILL at a random moment and started
again. Clients send everything again that was not answered. Afterwards, each event that ctr-collect answered with 202
must be in the joined log, or in its balance, exactly once.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np

from contract.request_log import LogLine
from contract.score_ids import is_logged
from loadtest.loop.check import read_lines
from loadtest.loop.daemon import Daemon, running
from loadtest.loop.demo import (
    BEHAVIOR,
    EVENTS,
    JOINED,
    LATENESS_S,
    LOG,
    WINDOW_S,
    compare,
    daemons,
    join_command,
    new_output,
)
from loadtest.loop.drive import Addresses, Driver, TrafficFailed
from loadtest.servers import ServerFailed, without_settings
from model.data.synthetic.traffic import Traffic
from model.data.synthetic.traffic_truth import received

RATE = 20.0  # requests/s
MAX_REQUESTS_PER_ROUND = 1000
MAX_PAUSE_S = 1.5
MAX_JOIN_S = 3.0  # ctr-join is killed within this time after its start
MAX_UNWRITTEN_S = 1.0  # a log line is in a file at most this long after the answer
AGAIN = "joined-again"


@dataclass
class Crashes:
    """Kills one process in each round.

    Attributes:
        service: The scoring server.
        collect: ctr-collect.
        out: The folder with their logs.
        rounds: How many times to kill each of the three.
        rng: Decides when.
    """

    service: Daemon
    collect: Daemon
    out: Path
    rounds: int
    rng: random.Random

    async def run(self, stop: asyncio.Event) -> None:
        """Run all rounds, and set `stop` at the end."""
        try:
            for _ in range(self.rounds):
                for daemon in (self.service, self.collect):
                    await asyncio.sleep(self.rng.uniform(0, MAX_PAUSE_S))
                    await asyncio.to_thread(daemon.kill)
                    await asyncio.to_thread(daemon.launch)
                    await asyncio.to_thread(daemon.wait_until_ready)
                await asyncio.to_thread(self.kill_join, None)
        finally:
            stop.set()

    def kill_join(self, until: datetime | None) -> None:
        """Start ctr-join, and kill it at a random moment."""
        process = subprocess.Popen(  # noqa: S603
            join_command(self.out, self.out / JOINED, until),
            env=without_settings(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(self.rng.uniform(0.2, MAX_JOIN_S))
        process.kill()
        process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the test. Return 1 if something was lost or duplicated, and 2 if the test could not run."""
    options = parse_arguments(argv)
    try:
        new_output(options.out)
        problems = run(options.out, options.bundle, options.rounds, options.seed)
    except (OSError, ValueError, ServerFailed, TrafficFailed) as error:
        print(f"crashes: {error}", file=sys.stderr)
        return 2
    for line in problems:
        print(line, file=sys.stderr)
    return int(bool(problems))


def run(out: Path, bundle: Path, rounds: int, seed: int) -> list[str]:
    """Send traffic while processes are killed. Return what is wrong afterwards, or []."""
    service, collect = daemons(out, bundle)
    crashes = Crashes(service, collect, out, rounds, random.Random(seed))  # noqa: S311  # no secrets
    traffic = Traffic(seed, time.time(), BEHAVIOR)
    driver = Driver(traffic, Addresses(service.url, collect.url))
    with running(service, collect):
        asyncio.run(drive_through(driver, traffic, crashes))
        service.stop()
        collect.stop()
    until = datetime.now(UTC) + timedelta(hours=2)
    for _ in range(rounds):
        crashes.kill_join(until)
    return [*lost(driver, out, rounds), *join_problems(out, until), *row_problems(driver, out)]


async def drive_through(driver: Driver, traffic: Traffic, crashes: Crashes) -> None:
    """Send traffic until all rounds of crashes are over."""
    stop = asyncio.Event()
    times_s = time.time() + np.arange(crashes.rounds * MAX_REQUESTS_PER_ROUND) / RATE
    requests = traffic.requests(times_s)
    tasks = [
        asyncio.create_task(crashes.run(stop)),
        asyncio.create_task(driver.run(requests, RATE, linger_s=BEHAVIOR.late_s, stop=stop)),
    ]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in pending:  # the other task failed
        task.cancel()
    for task in done:
        task.result()


def lost(driver: Driver, out: Path, kills: int) -> list[str]:
    """Return which acknowledged events are not stored, and whether too many requests are not in the request log."""
    problems = []
    stored = {msgspec.json.decode(line)["event_id"] for line in read_lines(out / EVENTS)}
    acknowledged = {sent.event.event_id for sent in driver.truth.sent}
    if missing := sorted(acknowledged - stored):
        problems.append(f"{len(missing)} events were answered with 202 and are not stored, such as {missing[0]}")
    answered = set(filter(is_logged, driver.truth.impressions()["score_id"]))
    unwritten = len(answered - logged_requests(out))
    allowed = kills * MAX_UNWRITTEN_S * RATE
    if unwritten > allowed:
        problems.append(f"{unwritten} sampled requests are not in the request log; at most {allowed:g} are expected")
    print(
        f"killed the service, ctr-collect and ctr-join {kills} times each; clients sent {driver.retries} requests again"
        f"\n{len(acknowledged):,} events were answered with 202, and {len(acknowledged & stored):,} of them are stored"
        f"\n{unwritten} of {len(answered):,} sampled requests were not logged before the service was killed"
    )
    return problems


def logged_requests(out: Path) -> set[str]:
    """Return the score_id of each line in the request log."""
    decode = msgspec.json.Decoder(LogLine).decode
    return {decode(line).score_id for line in read_lines(out / LOG)}


def join_problems(out: Path, until: datetime) -> list[str]:
    """Join to the end, once more, and in another folder. Return what is wrong: all must write the same bytes."""
    results = []
    for joined in (JOINED, JOINED, AGAIN):
        process = subprocess.run(  # noqa: S603
            join_command(out, out / joined, until),
            env=without_settings(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode != 0:
            return [f"ctr-join exited with code {process.returncode}: {process.stderr}"]
        results.append(contents(out / joined))
    return [] if results[0] == results[1] == results[2] else ["joining again wrote other files"]


def contents(joined: Path) -> dict[str, bytes]:
    """Return the files of a joined log."""
    paths = [joined / "join.json", *joined.glob("hours/*"), *joined.glob("late/*")]
    return {str(path.relative_to(joined)): path.read_bytes() for path in paths}


def row_problems(driver: Driver, out: Path) -> list[str]:
    """Return how the joined log differs from what the simulation knows, or []."""
    truth = driver.truth
    truth.sent = received(truth.sent, read_lines(out / EVENTS))
    requests = logged_requests(out)
    problems = compare(truth, out / JOINED, requests)
    if not problems:
        events = truth.events(WINDOW_S, LATENESS_S, requests)
        print(f"{len(truth.joined(events)):,} rows and all {len(events):,} events are as expected, exactly once")
    return problems


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loadtest.loop.crashes", description=__doc__, formatter_class=raw)
    parser.add_argument("--bundle", type=Path, default=Path("deploy/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/loop-crashes"), help="output folder, which is replaced")
    parser.add_argument("--rounds", type=int, default=100, help="how many times each process is killed")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
