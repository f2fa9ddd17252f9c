"""The comparison's targets, evaluated on made-up figures. Each target can fail."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

from loadtest.peers.compare import OURS
from loadtest.peers.measure import Figures, MeasuredServer
from loadtest.peers.tables import OUR_GRAPH, SIZES, tables_of, targets_of

AT_OTHER_RATES_MS = 4.0


def server(name: str, rates: list[float], p99_ms: float = 5.0, difference: float = 1e-7) -> MeasuredServer:
    """Return a server's results. rates: requests/s of each round, the same for every size."""
    nowhere: Any = nullcontext
    rounds = [{size: Figures(rate, 10.0, 1.0, p99_ms, Counter()) for size in SIZES} for rate in rates]
    return MeasuredServer(name, nowhere, rounds, [100.0] * len(rates), difference)


def passed(*servers: MeasuredServer) -> list[bool]:
    for other in servers[1:]:
        servers[0].at_other_rates |= {(other.name, size): [AT_OTHER_RATES_MS] for size in SIZES}
    return [target.passed for target in targets_of(servers)]


MINE = server(OURS, [1000, 1200, 800])


def test_all_targets_pass_for_a_server_that_is_much_faster() -> None:
    assert passed(MINE, server("a", [100, 120, 80], 6.0), server("b", [50, 60, 40], 9.0)) == [True] * 7


def test_the_best_server_decides_the_first_target_and_the_median_one_the_second() -> None:
    slow = [server(name, [50, 60, 40], 9.0) for name in "bcd"]
    best, middle, *_ = passed(MINE, server("a", [250, 300, 200], 9.0), *slow)
    assert (best, middle) == (False, True)
    slow = [server(name, [190, 228, 152], 9.0) for name in "bcd"]
    best, middle, *_ = passed(MINE, *slow)
    assert (best, middle) == (True, False)


def test_ratios_are_taken_within_a_round_so_that_a_slow_machine_has_no_effect() -> None:
    mine, other = server(OURS, [1000, 500, 500]), server("a", [150, 75, 75])
    passed(mine, other)
    assert "6.7x" in targets_of([mine, other])[0].measured


def test_a_single_server_with_a_lower_p99_or_other_scores_fails_a_target() -> None:
    assert not passed(MINE, server("a", [100, 120, 80], 4.9))[3]
    assert not passed(MINE, server("a", [100, 120, 80], 6.0, difference=1e-3))[6]


def test_at_the_rate_of_another_server_our_p99_must_not_be_higher() -> None:
    assert passed(MINE, server("a", [100, 120, 80], AT_OTHER_RATES_MS))[3:5] == [False, True]
    assert passed(MINE, server("a", [100, 120, 80], AT_OTHER_RATES_MS - 0.1))[3:5] == [False, False]


def test_a_server_that_answers_nothing_fails_the_latency_targets() -> None:
    silent = server(OURS, [1000, 1200, 800], float("nan"))
    silent.rounds[0][1] = Figures(1000, 10.0, float("nan"), float("nan"), Counter({429: 7}))
    assert passed(silent, server("a", [100, 120, 80], 6.0))[3::2] == [False, False]


def test_another_server_with_our_graph_is_shown_but_has_no_target() -> None:
    graph = server(OUR_GRAPH, [900, 900, 900], 1.0)
    other = server("a", [100, 120, 80], 6.0)
    assert passed(MINE, graph, other) == [True] * 7
    assert [row[0] for row in tables_of([MINE, graph, other])[0].rows] == [OURS, OUR_GRAPH, "a"]
