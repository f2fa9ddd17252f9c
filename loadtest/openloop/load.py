"""Poisson arrivals at a stated rate, whatever the server does: python -m loadtest.openloop --rate 500

--profile makes the rate steady, in bursts, or follow a day (loadtest/openloop/arrivals.py).

Latency counts from the time when a request was meant to be sent, so a stall counts for all that it delayed. How late
the client itself was is reported beside it: a slow client cannot pass for a fast server, nor a fast one for a slow one.
So is where the server says that it spent its time, if it is this project's: loadtest/openloop/phases.py.
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

BEGIN_S = 0.1  # from the word to the first request
END_S = 60.0  # for a generator to end by itself, after its load
MOST_FAILED = 0.001  # of the requests, for find_max
PRECISION = 0.03  # of the rate, where the bisection ends


@dataclass(frozen=True)
class Load:
    """rate: requests/s of all processes together. check, hostile: shares of the requests. connections: of each process,
    at most. cpus: those for the generators, none: any. patience_s: after the deadline; what is not whole then hangs.
    profile: when the requests come; the bursts of all processes come together."""

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
    patience_s: float = 5.0
    profile: Profile = "steady"


@dataclass(frozen=True)
class Outcome:
    """begin_s: time.monotonic() of the load's start. client_cpu: CPU seconds of all generators per second of load."""

    load: Load
    records: Records
    begin_s: float
    client_cpu: float
    opened: int
    examples: list[str]


class Running:
    """A load that has begun. On leaving its context the generators end, wherever they are."""

    def __init__(self, load: Load, processes: Sequence["subprocess.Popen[str]"], folder: Path) -> None:
        self.load = load
        self.processes = processes
        self._folder = folder
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError(f"a generator ended at once, with {process.wait()}: its words are above")
        self.begin_s = time.monotonic() + BEGIN_S
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{self.begin_s!r}\n")
            process.stdin.flush()

    def wait(self) -> Outcome:
        """Until every request has its end. Raises RuntimeError when a generator failed."""
        for process in self.processes:
            process.communicate(timeout=self.load.seconds + END_S)
            if process.returncode:
                raise RuntimeError(f"a generator ended with {process.returncode}: its words are above")
        parts = [self._folder / str(number) for number in range(len(self.processes))]
        records = merge([np.load(part / RECORDS, allow_pickle=False) for part in parts])
        notes = [msgspec.json.decode((part / NOTES).read_bytes(), type=Notes) for part in parts]
        cpu = sum(note.cpu_s for note in notes) / self.load.seconds
        examples = [example for note in notes for example in note.examples]
        return Outcome(self.load, records, self.begin_s, cpu, sum(note.opened for note in notes), examples)


@contextmanager
def begin(load: Load, requests: Sequence[Prepared], hostile: Sequence[Hostile] = ()) -> Iterator[Running]:
    """Starts the generators; entered when all are about to send."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="openloop-")))
        processes = []
        for number in range(load.processes):
            part = folder / str(number)
            part.mkdir()
            (part / PLAN).write_bytes(msgspec.json.encode(_plan(load, number, requests, hostile)))
            command = [sys.executable, "-m", "loadtest.openloop.generator", str(part)]
            pipe = subprocess.PIPE
            process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))  # noqa: S603
            stack.callback(process.kill)
            processes.append(process)
        yield Running(load, processes, folder)


def run(load: Load, requests: Sequence[Prepared], hostile: Sequence[Hostile] = ()) -> Outcome:
    """Raises RuntimeError when a generator failed."""
    with begin(load, requests, hostile) as running:
        return running.wait()


def _plan(load: Load, number: int, requests: Sequence[Prepared], hostile: Sequence[Hostile]) -> Plan:
    split = urlsplit(load.url)
    return Plan(
        host=split.hostname or "127.0.0.1",
        port=split.port or 80,
        rate=load.rate / load.processes,
        seconds=load.seconds,
        timeout_ms=load.timeout_ms,
        patience_s=load.patience_s,
        connections=load.connections,
        check=load.check,
        hostile=load.hostile if hostile else 0.0,
        seed=load.seed * 1000 + number,
        shared_seed=load.seed * 1000 + 999,  # and no process's own
        cpus=list(load.cpus),
        requests=list(requests),
        hostile_requests=list(hostile),
        profile=load.profile,
    )


def summary(outcome: Outcome) -> list[tuple[str, str]]:
    """Names and figures. Latencies are those of the 200s."""
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


def keeps(outcome: Outcome, p99_ms: float) -> bool:
    """Whether p99 from the intended time is within, and almost all requests were answered with scores."""
    scores = read.scores(outcome.records)
    two_hundred = read.answered(scores)
    if not len(scores) or len(two_hundred) < (1 - MOST_FAILED) * len(scores):
        return False
    return read.quantiles_ms(read.from_intended_ms(two_hundred), (99,))[0] <= p99_ms


def find_max(offer: Callable[[float], bool], first: float) -> float:
    """The highest rate at which `offer` is kept: doubled until it is not, then halved between. 0: not even at a
    thousandth of the first."""
    low, high = 0.0, first
    while offer(high):
        low, high = high, high * 2
    while high - low > PRECISION * high and high > first / 1000:
        middle = (low + high) / 2
        low, high = (middle, high) if offer(middle) else (low, middle)
    return low
