"""Measure a server's throughput, CPU time and memory, and its latency at half of that throughput."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from contract.golden import largest_difference
from loadtest.openloop import records as read
from loadtest.openloop.check import fetch_scores
from loadtest.openloop.load import Load, run
from loadtest.openloop.message import Prepared
from loadtest.openloop.saturate import saturate

CONNECTIONS = (4, 8, 16)  # of the closed loop; each server's best number is used
TIMEOUT_MS = 10_000  # long enough that nothing expires, because the other servers have no deadlines


class Serving(Protocol):
    """A running server."""

    @property
    def url(self) -> str: ...

    def cpu_s(self) -> float:
        """Return the CPU seconds that all of the server's processes have used so far."""

    def memory_mib(self) -> float: ...


Start = Callable[[], AbstractContextManager[Serving]]


@dataclass(frozen=True)
class Figures:
    """Measurements for one request size in one round.

    Args:
        per_s: Answers per second in a closed loop.
        cpu_us: CPU time of the server's processes per candidate, in the closed loop.
        p50_ms, p99_ms: Latency at half of per_s, from the intended time.
        not_answered: Status -> number of requests not answered with scores at half of per_s.
    """

    per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    not_answered: Counter[int]


@dataclass
class MeasuredServer:
    """A server and its results.

    Args:
        start: Starts the server. The context is entered when the server answers.
        rounds: Measurements of each round by number of candidates.
        memory_mib: Memory at the end of each round.
        difference: Largest difference between the server's probabilities and the expected ones.
        at_other_rates: Only for our server. (Name of another server, number of candidates) -> p99 in ms of each round,
            at half of that server's throughput.
    """

    name: str
    start: Start
    rounds: list[dict[int, Figures]] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    difference: float = 0.0
    at_other_rates: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def median(self, size: int, figure: Callable[[Figures], float]) -> float:
        return statistics.median(figure(round_[size]) for round_ in self.rounds)

    def not_answered(self) -> Counter[int]:
        """Count the requests not answered with scores over all rounds and sizes, by status."""
        return sum((figures.not_answered for round_ in self.rounds for figures in round_.values()), Counter())


def measure_round(
    measured: MeasuredServer,
    requests: Mapping[int, list[Prepared]],
    seconds: float,
    connections: dict[tuple[str, int], int],
) -> None:
    """Start the server and add a round to its results.

    Args:
        requests: Requests by number of candidates.
        seconds: Duration of each measurement.
        connections: Best number of connections for each server and size, filled in by the first round.
    """
    with measured.start() as server:
        measured.difference = max(measured.difference, score_difference(server.url, requests[100][:20]))
        figures = {}
        for size, prepared in requests.items():
            warm_up(server, prepared)
            key = (measured.name, size)
            if key not in connections:
                connections[key] = max(CONNECTIONS, key=lambda n: throughput(server, prepared, n, seconds / 2)[0])
            per_s, cpu_us = throughput(server, prepared, connections[key], seconds)
            p50_ms, p99_ms, not_answered = latency_at(server.url, prepared, per_s / 2, seconds)
            figures[size] = Figures(per_s, cpu_us / size, p50_ms, p99_ms, not_answered)
        measured.rounds.append(figures)
        measured.memory_mib.append(server.memory_mib())


def warm_up(server: Serving, requests: Sequence[Prepared]) -> None:
    """Warm up server and client."""
    saturate(server.url, [request.message for request in requests], CONNECTIONS[0], 1.0)


def throughput(server: Serving, requests: Sequence[Prepared], connections: int, seconds: float) -> tuple[float, float]:
    """Return the answers per second in a closed loop, and the CPU time per answer in µs."""
    before_s = server.cpu_s()
    answers = saturate(server.url, [request.message for request in requests], connections, seconds)
    return answers.per_s, (server.cpu_s() - before_s) * 1e6 / max(1, answers.good + answers.other + answers.late)


def latency_at(
    url: str, requests: Sequence[Prepared], per_s: float, seconds: float
) -> tuple[float, float, Counter[int]]:
    """Return p50 and p99 of an open loop in ms, and how many requests were not answered with scores, by status."""
    outcome = run(Load(url, max(1.0, per_s), seconds, TIMEOUT_MS, check=0.0), requests)
    scores = read.scores(outcome.records)
    p50_ms, p99_ms = read.quantiles_ms(read.from_intended_ms(read.answered(scores)), (50, 99))
    return p50_ms, p99_ms, read.not_answered(scores)


def measure_at_other_rates(
    ours: MeasuredServer, others: Sequence[MeasuredServer], requests: Mapping[int, list[Prepared]], seconds: float
) -> None:
    """Measure our p99 at the rates at which the other servers' p99 was measured in this round."""
    with ours.start() as server:
        for size, prepared in requests.items():
            warm_up(server, prepared)
            for other in others:
                _, p99_ms, _ = latency_at(server.url, prepared, other.rounds[-1][size].per_s / 2, seconds)
                ours.at_other_rates.setdefault((other.name, size), []).append(p99_ms)


def score_difference(url: str, requests: Sequence[Prepared]) -> float:
    """Return the largest difference between a server's probabilities and the expected ones."""
    largest = 0.0
    for request in requests:
        (expected,) = request.expected.values()
        largest = max(largest, largest_difference(expected, fetch_scores(url, request)).absolute)
    return largest
