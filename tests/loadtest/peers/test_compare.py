"""What the comparison says of given figures: its bars can be missed."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

from loadtest.peers.compare import OURS
from loadtest.peers.measure import Contestant, Figures
from loadtest.peers.tables import OUR_GRAPH, SIZES, bars_of, tables_of


def contestant(name: str, rates: list[float], p99_ms: float = 5.0, difference: float = 1e-7) -> Contestant:
    """rates: requests/s of each round, at every size."""
    nowhere: Any = nullcontext
    rounds = [{size: Figures(rate, 10.0, 1.0, p99_ms, Counter()) for size in SIZES} for rate in rates]
    return Contestant(name, nowhere, rounds, [100.0] * len(rates), difference)


def kept(*contestants: Contestant) -> list[bool]:
    for one in contestants[1:]:  # ours, at the rates of the others
        contestants[0].at_peers_rate |= {(one.name, size): [AT_PEERS_RATE_MS] for size in SIZES}
    return [bar.kept for bar in bars_of(contestants)]


AT_PEERS_RATE_MS = 4.0
MINE = contestant(OURS, [1000, 1200, 800])


def test_all_bars_are_kept_by_a_server_that_is_much_faster() -> None:
    assert kept(MINE, contestant("a", [100, 120, 80], 6.0), contestant("b", [50, 60, 40], 9.0)) == [True] * 7


def test_the_best_peer_decides_the_first_bar_and_the_median_one_the_second() -> None:
    slow = [contestant(name, [50, 60, 40], 9.0) for name in "bcd"]
    best, middle, *_ = kept(MINE, contestant("a", [250, 300, 200], 9.0), *slow)
    assert (best, middle) == (False, True)
    slow = [contestant(name, [190, 228, 152], 9.0) for name in "bcd"]
    best, middle, *_ = kept(MINE, *slow)
    assert (best, middle) == (True, False)


def test_each_round_is_compared_with_itself_so_that_a_slow_quarter_of_an_hour_is_nobodys_fault() -> None:
    mine, other = contestant(OURS, [1000, 500, 500]), contestant("a", [150, 75, 75])
    kept(mine, other)
    assert "6.7x" in bars_of([mine, other])[0].figure


def test_one_peer_with_a_lower_p99_or_other_scores_is_enough_to_miss_a_bar() -> None:
    assert not kept(MINE, contestant("a", [100, 120, 80], 4.9))[3]
    assert not kept(MINE, contestant("a", [100, 120, 80], 6.0, difference=1e-3))[6]


def test_at_a_peers_own_rate_ours_must_not_be_above_it() -> None:
    assert kept(MINE, contestant("a", [100, 120, 80], AT_PEERS_RATE_MS))[3:5] == [False, True]
    assert kept(MINE, contestant("a", [100, 120, 80], AT_PEERS_RATE_MS - 0.1))[3:5] == [False, False]


def test_a_server_that_answers_nothing_keeps_no_bar_of_latency() -> None:
    silent = contestant(OURS, [1000, 1200, 800], float("nan"))
    silent.rounds[0][1] = Figures(1000, 10.0, float("nan"), float("nan"), Counter({429: 7}))
    assert kept(silent, contestant("a", [100, 120, 80], 6.0))[3::2] == [False, False]


def test_our_own_graph_behind_another_server_is_shown_and_is_no_peer() -> None:
    graph = contestant(OUR_GRAPH, [900, 900, 900], 1.0)
    peer = contestant("a", [100, 120, 80], 6.0)
    assert kept(MINE, graph, peer) == [True] * 7
    assert [row[0] for row in tables_of([MINE, graph, peer])[0].rows] == [OURS, OUR_GRAPH, "a"]
