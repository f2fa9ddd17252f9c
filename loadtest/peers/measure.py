"""One server measured: how much it answers, at which CPU and memory, and how late at half of that."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import httpx
import msgspec

from contract.golden import largest_difference
from loadtest.openloop import records as read
from loadtest.openloop.load import Load, run
from loadtest.openloop.message import Prepared
from loadtest.openloop.saturate import saturate

CONNECTIONS = (4, 8, 16)  # of the closed loop; the best counts, for each its own
PATIENCE_MS = 10_000  # nobody is refused and nothing expires: the peers know no deadlines


class Serving(Protocol):
    """A server that is up."""

    @property
    def url(self) -> str: ...

    def cpu_s(self) -> float:
        """Of all its processes, so far."""

    def memory_mib(self) -> float: ...


Start = Callable[[], AbstractContextManager[Serving]]


@dataclass(frozen=True)
class Figures:
    """Of one size in one round. cpu_us: of the server's processes, for a candidate. The rest is at half of per_s."""

    per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    not_answered: Counter[int]


@dataclass
class Contestant:
    name: str
    start: Start
    rounds: list[dict[int, Figures]] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    difference: float = 0.0
    # Ours, p99 in ms of each round, at the rate at which a peer had its own, by that peer's name and the size.
    at_peers_rate: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def median(self, size: int, of: Callable[[Figures], float]) -> float:
        return statistics.median(of(round_[size]) for round_ in self.rounds)

    def not_answered(self) -> Counter[int]:
        """Of all rounds and sizes, by status."""
        return sum((figures.not_answered for round_ in self.rounds for figures in round_.values()), Counter())


def measure_round(
    contestant: Contestant,
    requests: Mapping[int, list[Prepared]],
    seconds: float,
    connections: dict[tuple[str, int], int],
) -> None:
    """connections: what was best, found in the first round."""
    with contestant.start() as server:
        contestant.difference = max(contestant.difference, difference(server.url, requests[100][:20]))
        figures = {}
        for size, prepared in requests.items():
            saturate(server.url, [one.message for one in prepared], CONNECTIONS[0], 1.0)  # warms both
            key = (contestant.name, size)
            if key not in connections:
                connections[key] = max(CONNECTIONS, key=lambda n: most(server, prepared, n, seconds / 2)[0])
            per_s, cpu_us = most(server, prepared, connections[key], seconds)
            figures[size] = at_half(server, prepared, per_s, cpu_us / size, seconds)
        contestant.rounds.append(figures)
        contestant.memory_mib.append(server.memory_mib())


def most(server: Serving, requests: Sequence[Prepared], connections: int, seconds: float) -> tuple[float, float]:
    """Answers per second, and CPU microseconds for each."""
    before_s = server.cpu_s()
    answered = saturate(server.url, [one.message for one in requests], connections, seconds)
    return answered.per_s, (server.cpu_s() - before_s) * 1e6 / max(1, answered.good + answered.other + answered.late)


def at_half(server: Serving, requests: Sequence[Prepared], per_s: float, cpu_us: float, seconds: float) -> Figures:
    p50_ms, p99_ms, not_answered = at_rate(server.url, requests, per_s / 2, seconds)
    return Figures(per_s, cpu_us, p50_ms, p99_ms, not_answered)


def at_rate(url: str, requests: Sequence[Prepared], per_s: float, seconds: float) -> tuple[float, float, Counter[int]]:
    """p50 and p99 in ms of an open loop, and what was not answered, by status."""
    outcome = run(Load(url, max(1.0, per_s), seconds, PATIENCE_MS, check=0.0), requests)
    scores = read.scores(outcome.records)
    p50_ms, p99_ms = read.quantiles_ms(read.from_intended_ms(read.answered(scores)), (50, 99))
    return p50_ms, p99_ms, read.not_answered(scores)


def measure_at_peers_rates(
    mine: Contestant, peers: Sequence[Contestant], requests: Mapping[int, list[Prepared]], seconds: float
) -> None:
    """Ours where the peers' p99 of this round was taken: half of the most is another rate for each."""
    with mine.start() as server:
        for size, prepared in requests.items():
            saturate(server.url, [one.message for one in prepared], CONNECTIONS[0], 1.0)
            for peer in peers:
                _, p99_ms, _ = at_rate(server.url, prepared, peer.rounds[-1][size].per_s / 2, seconds)
                mine.at_peers_rate.setdefault((peer.name, size), []).append(p99_ms)


def difference(url: str, requests: Sequence[Prepared]) -> float:
    """The largest in probability from what is right."""
    largest = 0.0
    for request in requests:
        answer = httpx.post(f"{url}/v1/score", content=request.body, headers={"Content-Type": "application/json"})
        scores = msgspec.json.decode(answer.raise_for_status().content)["scores"]
        (expected,) = request.expected.values()
        largest = max(largest, largest_difference(expected, [score["ctr"] for score in scores]))
    return largest
