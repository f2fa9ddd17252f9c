"""The report of a soak: targets, phases, memory."""

import numpy as np

from loadtest.openloop import records as read
from loadtest.openloop.connection import LOST
from loadtest.openloop.load import Outcome
from loadtest.openloop.records import Records
from loadtest.report import Table
from loadtest.scenarios.timeline import History, Phase
from loadtest.targets import Target, report

SPARE_MS = 20.0  # tolerance after the deadline, for the network and because the client shares the cores
KILL_S = 0.1  # from a worker's death until the client has noticed that all connections to the worker are closed
MAX_GROWTH = 1.15  # the workers' memory at the end / at the start
TITLE = "A soak with failures of every kind"
PHASES = ("phase", "s", "sent", "200", "429", "504", "no answer", "late", "degraded", "p50", "p99")


def write(workers: int, capacity: float, outcome: Outcome, history: History, exit_code: int, command: str) -> int:
    """Write loadtest/results/soak.md and return the exit code: 1 if a target fails."""
    load, scores = outcome.load, read.scores(outcome.records)
    text = (
        f"{workers} workers, Redis and the open-loop generator on the same cores; {load.seconds / 60:g} minutes at "
        f"{load.rate:.0f} requests/s, {load.rate / capacity:.0%} of the capacity of {capacity:.0f}/s; 1, 10, 100 and "
        f"300 candidates, 97 on average; deadline {load.timeout_ms} ms; {load.hostile:.0%} of the requests are "
        "hostile. Every answer is checked against the probabilities of the version named in it. Redis was killed and "
        "restarted empty, Redis was "
        f"frozen, {len(history.reloads_s)} new models were loaded, and a worker was killed. Latencies are those of the "
        "200s, in ms from the intended time. The client was late by "
        "{:.2f}, {:.2f} and {:.2f} ms (p50, p99, max) and used {:.0%} of a core.".format(
            *read.quantiles_ms(read.lateness_ms(scores), (50, 99, 100)), outcome.client_cpu
        )
    )
    memory = [
        (when, ", ".join(f"{mib:.0f}" for mib in each_mib), f"{sum(each_mib):.0f}")
        for when, each_mib in history.memory_mib
    ]
    tables = [
        totals(outcome.records),
        Table("Phases", PHASES, [phase_row(*phase, scores) for phase in joined(history.phases)]),
        Table("Memory of the workers, MiB", ("", "each", "together"), memory),
    ]
    if outcome.examples:
        tables.append(Table("Wrong answers", ("the first ones",), [(example,) for example in outcome.examples]))
    return report("soak", TITLE, text, targets_of(outcome, history, exit_code), tables, command)


def targets_of(outcome: Outcome, history: History, exit_code: int) -> list[Target]:
    load, records, scores = outcome.load, outcome.records, read.scores(outcome.records)
    hostile = records.compress(records["hostile"])
    lost_with_worker = int(of_killed_worker(records, history.killed_s).sum())
    others = read.unanswered(records) - lost_with_worker
    in_flight = (records["sent_s"] <= history.killed_s) & (records["ended_s"] >= history.killed_s)
    number = int(np.count_nonzero(in_flight))
    note = "" if number else ": not tested, no request was in flight"
    late = late_requests(scores, read.from_sent_ms(scores), history.killed_s)
    late_from_intended = late_requests(scores, read.from_intended_ms(scores), history.killed_s)
    first, last = (sum(history.memory_mib[index][1]) for index in (0, -1))
    bad = int(hostile["wrong"].sum())
    wrong, checked = int(scores["wrong"].sum()), int(scores["checked"].sum())
    return [
        Target("wrong scores", f"{wrong} of {checked} checked", "0", wrong == 0),
        Target("without an answer, except those of the killed worker", str(others), "0", others == 0),
        # A connection has one request in flight at a time, and may send it just before the client sees it closed.
        Target(
            "lost with the killed worker",
            f"{lost_with_worker}; both workers had {number} in flight{note}",
            f"its connections, of {load.connections}",
            lost_with_worker <= load.connections,
        ),
        Target(
            f"not answered within the deadline + {SPARE_MS:g} ms",
            f"{late} ({late_from_intended} from the intended time)",
            "0",
            late == 0,
        ),
        Target("hostile requests with a wrong status", f"{bad} of {len(hostile)}", "0", bad == 0),
        Target(
            "memory, start to end", f"{first:.0f} to {last:.0f} MiB", f"<= {MAX_GROWTH}x", last <= MAX_GROWTH * first
        ),
        Target("exit code at SIGTERM", str(exit_code), "0", exit_code == 0),
    ]


def of_killed_worker(records: Records, killed_s: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which requests were lost with the worker that was killed at `killed_s`.

    They were in flight when it died, or were sent before the client noticed that their connection was closed.
    """
    soon_s = killed_s + KILL_S
    at_that_time = (records["sent_s"] <= soon_s) & (records["ended_s"] >= killed_s) & (records["ended_s"] <= soon_s)
    return np.asarray((records["status"] == LOST) & at_that_time)


def late_requests(scores: Records, latency_ms: np.ndarray[tuple[int], np.dtype[np.float64]], killed_s: float) -> int:
    """Count the requests not answered within their deadline plus SPARE_MS, except those lost with the killed worker.

    Args:
        latency_ms: Latency of each request, from the sent or the intended time.
    """
    late = ~read.in_time(scores, latency_ms, SPARE_MS)
    return int(np.count_nonzero(late & ~of_killed_worker(scores, killed_s)))


def totals(records: Records) -> Table:
    scores = read.scores(records)
    counts = [len(scores), *(read.count(scores, status) for status in (200, 429, 504)), read.unanswered(scores)]
    known = np.isin(scores["status"], (200, 429, 504, *range(-3, 1)))
    cells = [*map(str, counts), str(int((~known).sum())), str(len(records) - len(scores))]
    return Table("Requests", ("sent", "200", "429", "504", "no answer", "other", "hostile"), [cells])


def phase_row(name: str, parts: list[Phase], scores: Records) -> list[str]:
    records = read.merge([read.between(scores, part.begin_s, part.end_s) for part in parts])
    accepted = read.answered(records)
    late = int(np.count_nonzero(~read.in_time(records, read.from_sent_ms(records), SPARE_MS)))
    counts = [len(records), *(read.count(records, status) for status in (200, 429, 504))]
    degraded = int(accepted["degraded"].sum()) / max(1, len(accepted))
    quantiles = read.quantiles_ms(read.from_intended_ms(accepted), (50, 99))
    seconds = sum(part.end_s - part.begin_s for part in parts)
    cells = [f"{seconds:.1f}", *map(str, (*counts, read.unanswered(records), late)), f"{degraded:.1%}"]
    return [name, *cells, *(f"{ms:.1f}" for ms in quantiles)]


def joined(phases: list[Phase]) -> list[tuple[str, list[Phase]]]:
    """Return the table's rows: the first normal phase, each failure, and the other normal phases as two rows."""
    rows = [("normal, first", [phases[0]])]
    rows += [(phase.name, [phase]) for phase in phases if phase.name != "normal"]
    between = [phase for phase in phases[1:-1] if phase.name == "normal"]
    return [*rows, ("normal, in between", between), ("normal, last", [phases[-1]])]
