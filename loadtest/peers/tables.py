"""The comparison's targets and tables."""

import statistics
from collections.abc import Callable, Sequence

from loadtest.openloop import records as read
from loadtest.peers.measure import Figures, MeasuredServer
from loadtest.report import Table
from loadtest.targets import Target

OUR_GRAPH = "plain FastAPI, our graph"
SIZES = (1, 10, 100, 500)  # candidates per request
MAX_DIFFERENCE = 1e-5


def targets_of(servers: Sequence[MeasuredServer]) -> list[Target]:
    """Return the targets for our server (the first one), compared with the others except the one with our graph."""
    ours, others = servers[0], [server for server in servers[1:] if server.name != OUR_GRAPH]
    at_100, at_1 = (throughput_ratios(ours, others, size) for size in (100, 1))
    # The comparisons are negated, so that NaN, the result of a server that answered nothing, counts as worst.
    behind = [size for size in SIZES if not all(p99(ours, size) <= p99(other, size) for other in others)]
    slower = [
        f"{other.name} at {size}"
        for other in others
        for size in SIZES
        if not p99_at_rate_of(other, ours, size) <= p99(other, size)
    ]
    lost = ours.not_answered()
    difference = max(server.difference for server in servers)
    best, middle, best_at_1 = min(at_100), statistics.median(at_100), min(at_1)
    lowest = f"not at {', '.join(map(str, behind))}" if behind else "at every size"
    return [
        Target(
            "requests/s of 100 candidates, over the best other server (not counting our graph)",
            f"{best:.1f}x",
            ">= 5x",
            best >= 5,
        ),
        Target("the same, over the median other server", f"{middle:.1f}x", ">= 8x", middle >= 8),
        Target(
            "requests/s of 1 candidate, over the best other server (not counting our graph)",
            f"{best_at_1:.2f}x",
            ">= 1x",
            best_at_1 >= 1,
        ),
        Target("the lowest p99 at half of capacity", lowest, "at every size", not behind),
        Target(
            "p99 of ours at half of another server's capacity, not above that server's",
            f"above {', '.join(slower)}" if slower else "of every server, at every size",
            "of every server, at every size",
            not slower,
        ),
        Target("requests that ours did not answer", read.described(lost), "0", not lost),
        Target(
            "largest difference in probability",
            f"{difference:.0e}",
            f"<= {MAX_DIFFERENCE:g}",
            difference <= MAX_DIFFERENCE,
        ),
    ]


def throughput_ratios(ours: MeasuredServer, others: Sequence[MeasuredServer], size: int) -> list[float]:
    """Return the ratio of our throughput to each other server's.

    Each is the median over rounds of the ratio within a round, because the runs of a round are close together in time.
    """
    return [
        statistics.median(
            mine[size].per_s / max(1e-9, theirs[size].per_s)
            for mine, theirs in zip(ours.rounds, other.rounds, strict=True)
        )
        for other in others
    ]


def p99(server: MeasuredServer, size: int) -> float:
    return server.median(size, lambda figures: figures.p99_ms)


def p99_at_rate_of(other: MeasuredServer, ours: MeasuredServer, size: int) -> float:
    """Return our median p99 at the rate at which the other server's p99 was measured."""
    return statistics.median(ours.at_other_rates[other.name, size])


def tables_of(servers: Sequence[MeasuredServer]) -> list[Table]:
    sizes = [str(size) for size in SIZES]
    columns: list[tuple[str, Callable[[Figures], float], str]] = [
        ("requests/s, by candidates", lambda figures: figures.per_s, ",.0f"),
        ("p50 ms at half of that", lambda figures: figures.p50_ms, ".1f"),
        ("p99 ms at half of that", lambda figures: figures.p99_ms, ".1f"),
        ("CPU µs a candidate", lambda figures: figures.cpu_us, ",.1f"),
    ]
    tables = [
        Table(
            title,
            ("", *sizes),
            [(server.name, *(format(server.median(size, figure), form) for size in SIZES)) for server in servers],
        )
        for title, figure, form in columns
    ]
    ours, *others = servers
    beside = [
        (other.name, *(f"{p99_at_rate_of(other, ours, size):.1f} to {p99(other, size):.1f}" for size in SIZES))
        for other in others
    ]
    title = "p99 ms of ours to that of another server, both at half of that server's capacity"
    tables.append(Table(title, ("", *sizes), beside))
    rest = [
        (
            server.name,
            f"{statistics.median(server.memory_mib):.0f}",
            f"{server.difference:.0e}",
            read.described(server.not_answered()),
            " to ".join(f"{end([round_[100].per_s for round_ in server.rounds]):,.0f}" for end in (min, max)),
        )
        for server in servers
    ]
    header = ("", "memory MiB", "largest difference", "not answered at half", "requests/s of 100, over the rounds")
    return [*tables, Table("Other figures", header, rest)]
