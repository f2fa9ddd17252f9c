"""Open-loop load: requests arrive at a given rate, whatever the server does: python -m loadtest.openloop --rate 500

--profile selects a steady rate, bursts, or a daily cycle (loadtest/openloop/arrivals.py).

Latency is measured from the intended send time, so a stall counts for every request that it delays. The report also
shows how late the client sent its requests, so that a slow client is not mistaken for a slow server. For this project's
server, it also shows the time spent in each phase (loadtest/openloop/phases.py).
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np

from loadtest.openloop import records as read
from loadtest.openloop.arrivals import Profile
from loadtest.openloop.generator import NOTES, PLAN, RECORDS, Notes, Plan
from loadtest.openloop.hostile import Hostile
from loadtest.openloop.message import Prepared
from loadtest.openloop.records import Records, merge

START_DELAY_S = 0.1  # from the start signal to the first request
STOP_TIMEOUT_S = 60.0  # for a generator to exit after its load
MAX_FAILED = 0.001  # maximum share of requests that were not scored, for find_max
PRECISION = 0.03  # relative precision of the rate at which the bisection stops


@dataclass(frozen=True)
class Load:
    """What the generators send.

    Args:
        url: The server.
        rate: Total requests/s of all processes.
        seconds: Length of the load.
        timeout_ms: Deadline of each request.
        processes: Number of generator processes.
        connections: Maximum number of connections per process.
        check: Share of answers whose scores are checked.
        hostile: Share of requests that are hostile.
        seed: Seed for requests and arrival times.
        cpus: CPUs that the generators are pinned to. Empty: any.
        grace_s: A request counts as hung if its answer is not complete this long after its deadline.
        profile: How the rate varies. The bursts of all processes coincide.
    """

    url: str
    rate: float
    seconds: float
    timeout_ms: int = 50
    processes: int = 1
    connections: int = 64
    check: float = 0.05
    hostile: float = 0.0
    seed: int = 1
    cpus: tuple[int, ...] = ()
    grace_s: float = 5.0
    profile: Profile = "steady"


@dataclass(frozen=True)
class Outcome:
    """The result of a load.

    Args:
        records: One for each request.
        begin_s: Start of the load on the clock of time.monotonic().
        client_cpu: CPU seconds of all generators per second of load.
        opened: Number of connections opened.
        examples: What was wrong with the first wrong answers.
    """

    load: Load
    records: Records
    begin_s: float
    client_cpu: float
    opened: int
    examples: list[str]


class Running:
    """A load that has started. Its generators are killed when the context of `begin` exits."""

    def __init__(self, load: Load, processes: Sequence["subprocess.Popen[str]"], folder: Path) -> None:
        self.load = load
        self.processes = processes
        self._folder = folder
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError(f"a load generator exited with code {process.wait()}; see its error above")
        self.begin_s = time.monotonic() + START_DELAY_S
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{self.begin_s!r}\n")
            process.stdin.flush()

    def wait(self) -> Outcome:
        """Wait until every request has been answered or abandoned.

        Raises:
            RuntimeError: A generator failed.
        """
        for process in self.processes:
            process.communicate(timeout=self.load.seconds + STOP_TIMEOUT_S)
            if process.returncode:
                raise RuntimeError(f"a load generator exited with code {process.returncode}; see its error above")
        parts = [self._folder / str(number) for number in range(len(self.processes))]
        records = merge([np.load(part / RECORDS, allow_pickle=False) for part in parts])
        notes = [msgspec.json.decode((part / NOTES).read_bytes(), type=Notes) for part in parts]
        cpu = sum(note.cpu_s for note in notes) / self.load.seconds
        examples = [example for note in notes for example in note.examples]
        return Outcome(self.load, records, self.begin_s, cpu, sum(note.opened for note in notes), examples)


@contextmanager
def begin(load: Load, requests: Sequence[Prepared], hostile: Sequence[Hostile] = ()) -> Iterator[Running]:
    """Start the generators. The context is entered when all of them are ready to send.

    Each generator runs in its own session, so Ctrl-C in a terminal does not reach it. It is killed when the context
    exits.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openloop-")))
        processes = []
        for number in range(load.processes):
            part = folder / str(number)
            part.mkdir()
            (part / PLAN).write_bytes(msgspec.json.encode(plan_of(load, number, requests, hostile)))
            command = [sys.executable, "-m", "loadtest.openloop.generator", str(part)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)  # noqa: S603
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield Running(load, processes, folder)


def run(load: Load, requests: Sequence[Prepared], hostile: Sequence[Hostile] = ()) -> Outcome:
    """Run a load until it ends. Raises RuntimeError if a generator fails."""
    with begin(load, requests, hostile) as running:
        return running.wait()


def plan_of(load: Load, number: int, requests: Sequence[Prepared], hostile: Sequence[Hostile]) -> Plan:
    """Return the plan for one of the load's processes. number: the process's index, from 0."""
    address = urlsplit(load.url)
    return Plan(
        host=address.hostname or "127.0.0.1",
        port=address.port or 80,
        rate=load.rate / load.processes,
        seconds=load.seconds,
        timeout_ms=load.timeout_ms,
        grace_s=load.grace_s,
        connections=load.connections,
        check=load.check,
        hostile=load.hostile if hostile else 0.0,
        seed=load.seed * 1000 + number,
        shared_seed=load.seed * 1000 + 999,  # differs from every process's own seed
        cpus=list(load.cpus),
        requests=list(requests),
        hostile_requests=list(hostile),
        profile=load.profile,
    )


def summary(outcome: Outcome) -> list[tuple[str, str]]:
    """Return the names and values of a load's results. Latencies cover only requests with status 200."""
    scores = read.scores(outcome.records)
    two_hundred = read.answered(scores)
    known = {200, 429, 504, 0, -1, -2}
    other = sum(1 for status in scores["status"].tolist() if status not in known)
    intended = read.quantiles_ms(read.from_intended_ms(two_hundred), (50, 90, 99, 99.9))
    sent = read.quantiles_ms(read.from_sent_ms(two_hundred), (50, 99))
    late = read.quantiles_ms(read.lateness_ms(scores), (50, 99, 100))
    return [
        ("offered", f"{outcome.load.rate:g}/s for {outcome.load.seconds:g} s, {outcome.load.profile}"),
        ("sent", str(len(scores))),
        *((name, str(read.count(scores, status))) for name, status in (("200", 200), ("429", 429), ("504", 504))),
        ("other", str(other)),
        ("lost, refused, hung", ", ".join(str(read.count(scores, status)) for status in (0, -1, -2))),
        ("200 within the deadline", f"{read.good(scores) / outcome.load.seconds:.1f}/s"),
        ("from the intended time, ms", "p50 {:.2f}, p90 {:.2f}, p99 {:.2f}, p99.9 {:.2f}".format(*intended)),
        ("from the sent time, ms", "p50 {:.2f}, p99 {:.2f}".format(*sent)),
        ("client late, ms", "p50 {:.2f}, p99 {:.2f}, max {:.2f}".format(*late)),
        ("client CPU", f"{outcome.client_cpu:.0%} of a core"),
        ("checked, wrong", f"{int(scores['checked'].sum())}, {int(scores['wrong'].sum())}"),
    ]


def passes(outcome: Outcome, p99_ms: float) -> bool:
    """Return whether p99 from the intended time is at most `p99_ms` and almost all requests were scored."""
    scores = read.scores(outcome.records)
    two_hundred = read.answered(scores)
    if not len(scores) or len(two_hundred) < (1 - MAX_FAILED) * len(scores):
        return False
    return read.quantiles_ms(read.from_intended_ms(two_hundred), (99,))[0] <= p99_ms


def find_max(passes_at: Callable[[float], bool], first: float) -> float:
    """Return the highest rate that passes: double the rate until it fails, then bisect.

    Args:
        passes_at: Returns whether a rate in requests/s passes.
        first: The first rate to try. If not even a thousandth of it passes, the result is 0.
    """
    low, high = 0.0, first
    while passes_at(high):
        low, high = high, high * 2
    while high - low > PRECISION * high and high > first / 1000:
        middle = (low + high) / 2
        low, high = (middle, high) if passes_at(middle) else (low, middle)
    return low
