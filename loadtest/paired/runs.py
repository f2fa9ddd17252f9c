"""One run of one checkout: start its server, warm it up, and measure it under load."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np

from contract.bundle import Bundle
from loadtest.openloop import records as read
from loadtest.openloop.check import fetch_scores, what_is_wrong
from loadtest.openloop.load import Load, begin
from loadtest.openloop.message import Prepared
from loadtest.openloop.saturate import saturate
from loadtest.paired.checkouts import CannotCompare
from loadtest.servers import Checkout, Server, busy_s, serving, stolen_s

CONNECTIONS = 8  # of the closed loop
CALIBRATION_S = 3.0
MARGIN_S = 0.5  # the load continues for this long after the measured window
TIMEOUT_MS = 10_000  # long enough that no deadline expires
# With these settings, admission control and draining have no effect, so both servers do all of the work. A server
# refuses unknown settings, so use only settings that older checkouts support.
SETTINGS = {"CTR_TIMEOUT_MS": str(TIMEOUT_MS), "CTR_QUEUE_TARGET_MS": "1000", "CTR_DRAIN_NOTICE_MS": "0"}


@dataclass(frozen=True)
class Plan:
    """The parameters of every run.

    Args:
        workers: Number of worker processes per server.
        server_cpus, client_cpus: CPUs that servers and load generator are pinned to. Empty: any.
        warm_up_s, seconds: Length of the load before the measured window, and length of the window.
        rate: Mean requests/s of the open loop. None: use a closed loop.
    """

    bundle: Bundle
    requests: list[Prepared]
    workers: int
    server_cpus: tuple[int, ...]
    client_cpus: tuple[int, ...]
    warm_up_s: float
    seconds: float
    rate: float | None = None


@dataclass(frozen=True)
class Window:
    """The measured part of a run, in seconds.

    Args:
        seconds: Length of the window.
        cpu_s: CPU time of supervisor and workers.
        busy_s: CPU time of all processes on the machine.
        stolen_s: CPU time that the host withheld from the machine, summed over all cores.
    """

    seconds: float
    cpu_s: float
    busy_s: float
    stolen_s: float


@dataclass(frozen=True)
class Run:
    """The result of one run.

    Args:
        window: The measured window.
        answered: Number of requests answered with scores in the window.
        p50_ms, p99_ms: Latency of these requests from the intended time. In a closed loop, that is the sent time.
        late_ms: p99 of how late the generator sent requests. 0 in a closed loop.
        client_cpu: CPU seconds of the generator per second.
        checked: Number of requests in the whole load whose scores were checked.
        failed: Number of requests in the whole load that were not answered with scores.
        wrong: Number of requests in the whole load whose scores were wrong.
        problems: What was wrong with the first wrong answers.
    """

    window: Window
    answered: int
    p50_ms: float
    p99_ms: float
    late_ms: float
    client_cpu: float
    checked: int
    failed: int
    wrong: int
    problems: list[str] = field(default_factory=list)

    @property
    def cpu_us(self) -> float:
        """CPU time per answered request in µs."""
        return self.window.cpu_s * 1e6 / self.answered

    @property
    def per_s(self) -> float:
        return self.answered / self.window.seconds

    @property
    def server_cpu(self) -> float:
        """CPU seconds of the server per second."""
        return self.window.cpu_s / self.window.seconds

    @property
    def other_cpu(self) -> float:
        """CPU seconds per second of everything on the machine except the server and the generator."""
        return max(0.0, self.window.busy_s / self.window.seconds - self.server_cpu - self.client_cpu)


@contextmanager
def started(checkout: Checkout, plan: Plan) -> Iterator[Server]:
    """Run a checkout's server according to the plan.

    Raises:
        ServerFailed: The server did not start.
        CannotCompare: The context raised it, or a request failed. The message includes the end of the server's log.
    """
    settings = {**SETTINGS, "CTR_BUNDLE": str(plan.bundle.folder.resolve()), **checkout.settings}
    with (
        TemporaryDirectory(prefix="paired-") as folder,
        serving(Path(folder), plan.workers, settings, plan.server_cpus, checkout) as server,
    ):
        try:
            yield server
        except (CannotCompare, OSError, msgspec.DecodeError) as error:
            log = server.log.read_text(errors="replace")[-2000:]
            raise CannotCompare(f"{checkout.root}: {error}. The server's log ends with:\n{log}") from error


@dataclass(frozen=True)
class Reading:
    """A snapshot of the clock, the CPU seconds of a server and of the machine, and the workers' pids."""

    at_s: float
    cpu_s: float
    busy_s: float
    stolen_s: float
    workers: list[int]

    @classmethod
    def of(cls, server: Server) -> "Reading":
        return cls(time.monotonic(), server.cpu_s(), busy_s(), stolen_s(), server.workers())

    def until(self, later: "Reading") -> Window:
        """Return the window between two readings.

        Raises:
            CannotCompare: The workers have changed, so the CPU seconds are not comparable.
        """
        if self.workers != later.workers:
            raise CannotCompare("a worker exited during the run")
        return Window(
            later.at_s - self.at_s,
            later.cpu_s - self.cpu_s,
            later.busy_s - self.busy_s,
            later.stolen_s - self.stolen_s,
        )


def calibrate(checkout: Checkout, plan: Plan) -> tuple[float, list[list[float]]]:
    """Return a checkout's closed-loop capacity in requests/s, and its probabilities for each request.

    Raises:
        CannotCompare: The server did not answer with scores.
        ServerFailed: The server did not start.
    """
    messages, seconds = [request.message for request in plan.requests], min(CALIBRATION_S, plan.seconds)
    with started(checkout, plan) as server:
        scores = [fetch_scores(server.url, request) for request in plan.requests]
        saturate(server.url, messages, CONNECTIONS, seconds)  # warms up
        found = saturate(server.url, messages, CONNECTIONS, seconds)
        if not found.good:
            raise CannotCompare(f"no request was answered with scores within {seconds:g} s ({found.other} failed)")
        return found.per_s, scores


def measure(checkout: Checkout, plan: Plan, seed: int) -> Run:
    """Start a checkout's server, warm it up, and measure it under load.

    Args:
        seed: Seed for the requests and their times in the open loop. The same seed gives the same load.

    Raises:
        CannotCompare: A worker exited, or no request was answered in the measured window.
        ServerFailed: The server did not start.
    """
    with started(checkout, plan) as server:
        run = measure_closed(server, plan) if plan.rate is None else measure_open(server, plan, plan.rate, seed)
        if run.window.cpu_s <= 0 or not run.p50_ms > 0:  # NaN when nothing was answered
            raise CannotCompare(f"no request was answered with scores in the window ({run.failed} failed)")
        return run


def measure_open(server: Server, plan: Plan, rate: float, seed: int) -> Run:
    """Measure under Poisson arrivals. The load starts before the measured window and continues after it."""
    length_s = plan.warm_up_s + plan.seconds + MARGIN_S
    load = Load(server.url, rate, length_s, TIMEOUT_MS, check=1.0, seed=seed, cpus=plan.client_cpus)
    with begin(load, plan.requests) as running:
        readings = []
        for since_s in (plan.warm_up_s, plan.warm_up_s + plan.seconds):
            time.sleep(max(0.0, running.begin_s + since_s - time.monotonic()))
            readings.append(Reading.of(server))
        outcome = running.wait()
    before, after = readings
    records = outcome.records
    in_window = (records["ended_s"] >= before.at_s) & (records["ended_s"] < after.at_s)
    answered = read.answered(records.compress(in_window))
    p50_ms, p99_ms = read.quantiles_ms(read.from_intended_ms(answered), (50, 99))
    return Run(
        before.until(after),
        len(answered),
        p50_ms,
        p99_ms,
        late_ms=read.quantiles_ms(read.lateness_ms(records), (99,))[0],
        client_cpu=outcome.client_cpu,
        checked=int(records["checked"].sum()),
        failed=read.not_answered(records).total(),
        wrong=int(records["wrong"].sum()),
        problems=outcome.examples,
    )


def measure_closed(server: Server, plan: Plan) -> Run:
    """Measure with CONNECTIONS connections that always have a request in flight."""
    messages = [request.message for request in plan.requests]
    if plan.warm_up_s:
        saturate(server.url, messages, CONNECTIONS, plan.warm_up_s)
    before, client_s = Reading.of(server), time.process_time()
    found = saturate(
        server.url, messages, CONNECTIONS, plan.seconds, lambda index, body: what_is_wrong(plan.requests[index], body)
    )
    window, client_s = before.until(Reading.of(server)), time.process_time() - client_s
    # The window ends with the last answer, so late answers count too: the window includes their CPU time.
    answered = found.good + found.late
    p50_ms, p99_ms = read.quantiles_ms(np.array(found.latencies_ms), (50, 99))
    return Run(
        window,
        answered,
        p50_ms,
        p99_ms,
        late_ms=0.0,
        client_cpu=client_s / window.seconds,
        checked=answered,
        failed=found.other,
        wrong=found.wrong,
        problems=found.problems,
    )
