"""What a soak found: bars, phases, memory."""

import numpy as np

from loadtest.openloop import records as read
from loadtest.openloop.connection import LOST
from loadtest.openloop.load import Outcome
from loadtest.openloop.records import Records
from loadtest.report import Table
from loadtest.scenarios.timeline import History, Phase
from loadtest.targets import Bar, report

SPARE_MS = 20.0  # after the deadline: for the way and for a client that shares the cores
KILL_S = 0.1  # until all that a dead worker's connections say so
GROWTH = 1.15  # of the workers' memory, from start to end
TITLE = "A soak in which everything goes wrong"


def write(workers: int, capacity: float, outcome: Outcome, history: History, exit_code: int, command: str) -> int:
    """Writes loadtest/results/soak.md. The exit code: 1 when a bar is missed."""
    load, scores = outcome.load, read.scores(outcome.records)
    text = (
        f"{workers} workers, Redis and the open-loop generator on the same cores; {load.seconds / 60:g} minutes at "
        f"{load.rate:.0f} requests/s, {load.rate / capacity:.0%} of the capacity of {capacity:.0f}/s; 1, 10, 100 and "
        f"300 candidates, 97 on average; {load.timeout_ms} ms to answer; {load.hostile:.0%} of the requests are "
        "hostile. Every answer is checked against the probabilities of the version that it names. Redis was killed "
        "and came back empty, was "
        f"frozen, {len(history.reloads_s)} new models were loaded, and a worker was killed. Latencies in ms, of the "
        "answers with scores, from the time when a request was meant to be sent. The client was late by "
        "{:.2f}, {:.2f} and {:.2f} ms (p50, p99, most) and took {:.0%} of a core.".format(
            *read.quantiles_ms(read.lateness_ms(scores), (50, 99, 100)), outcome.client_cpu
        )
    )
    tables = [
        _totals(outcome.records),
        Table("Phases", PHASES, [_phase_row(phase, scores) for phase in _joined(history.phases)]),
        Table(
            "Memory of the workers, MiB", ("", "each", "together"), [_memory_row(*one) for one in history.memory_mib]
        ),
    ]
    if outcome.examples:
        tables.append(Table("What was wrong", ("the first of it",), [(example,) for example in outcome.examples]))
    return report("soak", TITLE, text, _bars(outcome, history, exit_code), tables, command)


def _bars(outcome: Outcome, history: History, exit_code: int) -> list[Bar]:
    load, scores = outcome.load, read.scores(outcome.records)
    hostile = outcome.records.compress(outcome.records["hostile"])
    of_worker = of_killed_worker(outcome.records, history.killed_s)
    others = read.unanswered(outcome.records) - int(of_worker.sum())
    in_hand = int(np.count_nonzero(_in_hand(outcome.records, history.killed_s)))
    late = late_ones(scores, history.killed_s)
    first, last = (sum(history.memory_mib[index][1]) for index in (0, -1))
    bad = int(hostile["wrong"].sum())
    wrong, checked = int(scores["wrong"].sum()), int(scores["checked"].sum())
    stake = "" if in_hand else ": nothing was at stake"
    lost = f"{int(of_worker.sum())}; both workers had {in_hand} in hand{stake}"
    late_figure = f"{late} ({_late_from_intended(scores, history.killed_s)} from the intended time)"
    return [
        Bar("wrong scores", f"{wrong} of {checked} checked", "0", wrong == 0),
        Bar("without an answer, the killed worker's apart", str(others), "0", others == 0),
        # A connection has one request at a time, which may be sent just before it is seen closed.
        Bar(
            "lost with the killed worker",
            lost,
            f"its connections, of {load.connections}",
            int(of_worker.sum()) <= load.connections,
        ),
        Bar(f"not answered within the deadline + {SPARE_MS:g} ms", late_figure, "0", late == 0),
        Bar("hostile requests with a wrong status", f"{bad} of {len(hostile)}", "0", bad == 0),
        Bar("memory, start to end", f"{first:.0f} to {last:.0f} MiB", f"<= {GROWTH}x", last <= GROWTH * first),
        Bar("exit code at SIGTERM", str(exit_code), "0", exit_code == 0),
    ]


def of_killed_worker(records: Records, killed_s: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which were lost with it: on their way when it died, or sent before its connections were seen closed."""
    soon_s = killed_s + KILL_S
    at_that_time = (records["sent_s"] <= soon_s) & (records["ended_s"] >= killed_s) & (records["ended_s"] <= soon_s)
    return np.asarray((records["status"] == LOST) & at_that_time)


def late_ones(scores: Records, killed_s: float) -> int:
    """Neither answered nor refused in time, counted from when they were sent; the killed worker's apart."""
    late = ~read.in_time(scores, read.from_sent_ms(scores), SPARE_MS)
    return int(np.count_nonzero(late & ~of_killed_worker(scores, killed_s)))


def _late_from_intended(scores: Records, killed_s: float) -> int:
    late = ~read.in_time(scores, read.from_intended_ms(scores), SPARE_MS)
    return int(np.count_nonzero(late & ~of_killed_worker(scores, killed_s)))


def _in_hand(records: Records, moment_s: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray((records["sent_s"] <= moment_s) & (records["ended_s"] >= moment_s))


def _totals(records: Records) -> Table:
    scores = read.scores(records)
    counts = [len(scores), *(read.count(scores, status) for status in (200, 429, 504)), read.unanswered(scores)]
    known = np.isin(scores["status"], (200, 429, 504, *range(-3, 1)))
    cells = [*map(str, counts), str(int((~known).sum())), str(len(records) - len(scores))]
    return Table("Requests", ("sent", "200", "429", "504", "no answer", "other", "hostile"), [cells])


PHASES = ("phase", "s", "sent", "200", "429", "504", "no answer", "late", "degraded", "p50", "p99")


def _phase_row(phase: tuple[str, list[Phase]], scores: Records) -> list[str]:
    name, parts = phase
    records = read.merge([read.between(scores, part.begin_s, part.end_s) for part in parts])
    accepted = read.answered(records)
    late = int(np.count_nonzero(~read.in_time(records, read.from_sent_ms(records), SPARE_MS)))
    counts = [len(records), *(read.count(records, status) for status in (200, 429, 504))]
    degraded = int(accepted["degraded"].sum()) / max(1, len(accepted))
    quantiles = read.quantiles_ms(read.from_intended_ms(accepted), (50, 99))
    seconds = sum(part.end_s - part.begin_s for part in parts)
    cells = [f"{seconds:.1f}", *map(str, (*counts, read.unanswered(records), late)), f"{degraded:.1%}"]
    return [name, *cells, *(f"{ms:.1f}" for ms in quantiles)]


def _joined(phases: list[Phase]) -> list[tuple[str, list[Phase]]]:
    """The calm between reloads in one row; the first and the last calm in rows of their own."""
    rows = [("calm, at first", [phases[0]])]
    rows += [(phase.name, [phase]) for phase in phases if phase.name != "calm"]
    between = [phase for phase in phases[1:-1] if phase.name == "calm"]
    return [*rows, ("calm, in between", between), ("calm, at last", [phases[-1]])]


def _memory_row(when: str, each_mib: list[float]) -> list[str]:
    return [when, ", ".join(f"{mib:.0f}" for mib in each_mib), f"{sum(each_mib):.0f}"]
