"""Ours and its peers on the same machine, in turn: python -m loadtest.peers.compare

The same trained model, the same requests: ours by its bundle and Redis, the peers by a plain export and a dictionary.
"""

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx
import msgspec
from rich.progress import Progress

from benchmarks.report import Table
from contract.bundle import Bundle, open_bundle
from contract.golden import largest_difference
from loadtest import records as read
from loadtest.bars import Bar, report
from loadtest.bodies import prepare
from loadtest.measured import RUN, ensure_bundle, write_plain
from loadtest.message import Prepared
from loadtest.openloop import Load, run
from loadtest.peers.peers import PEERS, Peer, ensure_venv, peer_serving
from loadtest.saturate import saturate
from loadtest.servers import Server, cpu_s_of, free_port, pss_mib, redis_with, serving
from model.run import open_run
from model.stec import STEC
from service.cpus import available_cpus

OURS, OUR_GRAPH = "ours", "plain FastAPI, our graph"
WORKERS = 2
SIZES = (1, 10, 100, 500)
REQUESTS = 200  # of each size
CONNECTIONS = (4, 8, 16)  # of the closed loop; the best counts, for each its own
PATIENCE_MS = 10_000  # nobody is refused and nothing expires: the peers know no deadlines
EQUAL = 1e-5
TITLE = "Ours and its peers"
VENVS = Path(__file__).resolve().parents[2] / ".peers"


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


@dataclass(frozen=True)
class _Ours:
    url: str
    server: Server
    redis: int

    def cpu_s(self) -> float:
        return self.server.cpu_s() + cpu_s_of(self.redis)

    def memory_mib(self) -> float:
        return sum(map(pss_mib, (self.server.process.pid, *self.server.workers(), self.redis)))


@contextmanager
def ours(bundle: Bundle) -> Iterator[Serving]:
    """With Redis, where the peers have a dictionary."""
    with tempfile.TemporaryDirectory() as name, redis_with(Path(name), [bundle]) as redis:
        settings = {"CTR_BUNDLE": str(bundle.folder), "CTR_REDIS_URL": redis.url}
        settings |= {"CTR_TIMEOUT_MS": str(PATIENCE_MS), "CTR_QUEUE_TARGET_MS": "1000"}
        with serving(Path(name), WORKERS, settings) as server:
            assert redis.process is not None
            yield _Ours(server.url, server, redis.process.pid)


@contextmanager
def theirs(peer: Peer, folder: Path, body: bytes) -> Iterator[Serving]:
    port = free_port()
    with peer_serving(peer, ensure_venv(peer, VENVS), folder, port, WORKERS, folder / "peer.log", body) as running:
        yield running


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when a bar is missed; the report is written all the same."""
    options = _arguments(argv)
    bundle = open_bundle(ensure_bundle())
    # Strings only, and every token known: what the peers' plain dictionaries are made for.
    requests = {size: prepare([bundle], {size: REQUESTS}, None, golden=0.0) for size in SIZES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, _, schema, _ = open_run(RUN)
        assert isinstance(model, STEC)
        write_plain(model, schema, {name: dict(v.items()) for name, v in bundle.vocabularies.items()}, folder)
        chosen = [peer for peer in PEERS.values() if not options.only or peer.name in options.only]
        for peer in chosen:
            ensure_venv(peer, VENVS)
        contestants = [Contestant(OURS, partial(ours, bundle))]
        contestants += [Contestant(p.name, partial(theirs, p, folder, requests[1][0].body)) for p in chosen]
        connections: dict[tuple[str, int], int] = {}
        with Progress(transient=True) as progress:
            task = progress.add_task("", total=options.rounds * (len(contestants) + 1))
            for round_ in range(options.rounds):
                for contestant in contestants:
                    progress.update(task, description=f"round {round_ + 1}: {contestant.name}")
                    measure_round(contestant, requests, options.seconds, connections)
                    progress.advance(task)
                progress.update(task, description=f"round {round_ + 1}: {OURS} at the peers' rates")
                measure_at_peers_rates(contestants[0], contestants[1:], requests, options.seconds)
                progress.advance(task)
    command = " ".join(["python -m loadtest.peers.compare", *(argv if argv is not None else sys.argv[1:])])
    return report("peers", TITLE, _text(bundle, chosen, options), _bars(contestants), _tables(contestants), command)


def _text(bundle: Bundle, peers: Sequence[Peer], options: argparse.Namespace) -> str:
    pins = "; ".join(f"{peer.name}: {', '.join(peer.requirements)}" for peer in peers)
    closed = ", ".join(map(str, CONNECTIONS))
    return (
        f"The same trained model ({bundle.manifest.name}: 18 context and 5 candidate fields, full attention), the same "
        "JSON, two workers with one thread of onnxruntime each (fronts and pools as each file says), and the "
        f"generator on the same {available_cpus()} cores. "
        f"{options.rounds} rounds, the servers in turn, {options.seconds:g} s for each figure; medians over rounds. "
        f"requests/s: a closed loop of {closed} connections, for each server its best. p50 and p99: an open loop "
        "(Poisson) at half of a server's own most, from the intended time. CPU: of the server's own processes, ours "
        "with Redis's, so the generator's share does not count; memory likewise.\n\n"
        "Ours looks tokens up in a cache and Redis, and has its deadlines and refusals set so long that they do "
        "nothing; the peers have a Python dictionary and a plain export of the model. Only the row "
        f'"{OUR_GRAPH}" has our folded graph (of onnxruntime\'s own operators, without the kernel).\n\n{pins}.'
    )


def _bars(contestants: Sequence[Contestant]) -> list[Bar]:
    mine, others = contestants[0], [one for one in contestants[1:] if one.name != OUR_GRAPH]
    at_100 = _ratios(mine, others, 100)
    at_1 = _ratios(mine, others, 1)
    # Written so that NaN, which is nothing answered, is behind.
    behind = [size for size in SIZES if not all(_p99(mine, size) <= _p99(one, size) for one in others)]
    slower = [
        f"{one.name} at {size}"
        for one in others
        for size in SIZES
        if not _at_rate_of(one, mine, size) <= _p99(one, size)
    ]
    lost = mine.not_answered()
    different = max(one.difference for one in contestants)
    best, middle, one = min(at_100), statistics.median(at_100), min(at_1)
    lowest = f"at {', '.join(map(str, behind))} it is not" if behind else "at every size"
    return [
        Bar(
            "requests/s of 100 candidates, over the best peer (not counting our graph)",
            f"{best:.1f}x",
            ">= 5x",
            best >= 5,
        ),
        Bar("the same, over the median peer", f"{middle:.1f}x", ">= 8x", middle >= 8),
        Bar("requests/s of 1 candidate, over the best peer (not counting our graph)", f"{one:.2f}x", ">= 1x", one >= 1),
        Bar("the lowest p99 at half of the most", lowest, "at every size", not behind),
        Bar(
            "p99 of ours at half of a peer's most, not above that peer's",
            f"above {', '.join(slower)}" if slower else "of every peer, at every size",
            "of every peer, at every size",
            not slower,
        ),
        Bar("requests that ours did not answer", read.described(lost), "0", not lost),
        Bar("largest difference in probability", f"{different:.0e}", f"<= {EQUAL:g}", different <= EQUAL),
    ]


def _ratios(mine: Contestant, others: Sequence[Contestant], size: int) -> list[float]:
    """Of each peer: the median over the rounds, each round's two figures having been measured in turn."""
    return [
        statistics.median(
            a[size].per_s / max(1e-9, b[size].per_s) for a, b in zip(mine.rounds, other.rounds, strict=True)
        )
        for other in others
    ]


def _p99(one: Contestant, size: int) -> float:
    return one.median(size, lambda figures: figures.p99_ms)


def _at_rate_of(peer: Contestant, mine: Contestant, size: int) -> float:
    return statistics.median(mine.at_peers_rate[peer.name, size])


def _tables(contestants: Sequence[Contestant]) -> list[Table]:
    sizes = [str(size) for size in SIZES]
    columns: list[tuple[str, Callable[[Figures], float], str]] = [
        ("requests/s, by candidates", lambda f: f.per_s, ",.0f"),
        ("p50 ms at half of that", lambda f: f.p50_ms, ".1f"),
        ("p99 ms at half of that", lambda f: f.p99_ms, ".1f"),
        ("CPU us for a candidate", lambda f: f.cpu_us, ",.1f"),
    ]
    tables = [
        Table(title, ("", *sizes), [(c.name, *(format(c.median(s, of), form) for s in SIZES)) for c in contestants])
        for title, of, form in columns
    ]
    mine = contestants[0]
    beside = [
        (one.name, *(f"{_at_rate_of(one, mine, s):.1f} to {_p99(one, s):.1f}" for s in SIZES))
        for one in contestants[1:]
    ]
    tables.append(Table("p99 ms of ours to that of a peer, both at half of the peer's most", ("", *sizes), beside))
    rest = [
        (
            one.name,
            f"{statistics.median(one.memory_mib):.0f}",
            f"{one.difference:.0e}",
            read.described(one.not_answered()),
            " to ".join(f"{of([round_[100].per_s for round_ in one.rounds]):,.0f}" for of in (min, max)),
        )
        for one in contestants
    ]
    header = ("", "memory MiB", "largest difference", "not answered at half", "requests/s of 100, over the rounds")
    return [*tables, Table("The rest", header, rest)]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("loadtest.peers.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each figure")
    parser.add_argument("--only", nargs="*", default=[], choices=list(PEERS), help="these peers; default: all")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
