"""The comparison's bars and tables."""

import statistics
from collections.abc import Callable, Sequence

from loadtest.openloop import records as read
from loadtest.peers.measure import Contestant, Figures
from loadtest.report import Table
from loadtest.targets import Bar

OUR_GRAPH = "plain FastAPI, our graph"
SIZES = (1, 10, 100, 500)  # candidates of a request
EQUAL = 1e-5


def bars_of(contestants: Sequence[Contestant]) -> list[Bar]:
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


def tables_of(contestants: Sequence[Contestant]) -> list[Table]:
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
