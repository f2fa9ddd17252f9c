"""A closed loop keeps every connection busy and counts the answers that arrive within the measured time."""

import pytest

from loadtest.openloop.message import message
from loadtest.openloop.saturate import saturate
from loadtest.servers import free_port
from tests.support.http_servers import always, answer, listening

MESSAGES = [message(b"{}")]


@pytest.mark.timing
def test_each_connection_sends_requests_one_after_another() -> None:
    """A server that takes 0.1 s per request answers ten requests per second on each connection."""
    with listening(always(answer(b"ok"), pause_s=0.1)) as url:
        alone = saturate(url, MESSAGES, connections=1, seconds=1.0)
        four = saturate(url, MESSAGES, connections=4, seconds=1.0)
    assert 0 < alone.good <= 10 < four.good <= 40
    assert alone.per_s == alone.good / 1.0
    assert alone.late == 1  # in flight when the measured time ended
    assert len(alone.latencies_ms) == alone.good
    assert min(alone.latencies_ms) > 90


def test_other_statuses_do_not_count_as_answers() -> None:
    with listening(always(answer(b"no", status="429 Too Many Requests"), pause_s=0.05)) as url:
        found = saturate(url, MESSAGES, connections=2, seconds=0.5)
    assert found.good == found.late == 0
    assert found.other >= 10


def test_a_connection_that_closes_after_its_answer_ends_its_loop() -> None:
    with listening(always(answer(b"ok", "Connection: close"))) as url:
        assert saturate(url, MESSAGES, connections=3, seconds=0.3).good == 3


def test_every_answer_is_checked_with_the_index_of_its_request() -> None:
    seen = set()

    def check(index: int, body: bytes) -> str | None:
        seen.add((index, body))
        return "wrong" if index == 1 else None

    with listening(always(answer(b"ok"), pause_s=0.01)) as url:
        found = saturate(url, [message(b"0"), message(b"1"), message(b"2")], 1, 0.5, check)
    assert seen == {(0, b"ok"), (1, b"ok"), (2, b"ok")}
    assert abs(found.wrong - (found.good + found.late) / 3) <= 1
    assert set(found.problems) == {"wrong"}


def test_an_unreachable_server_is_an_error() -> None:
    with pytest.raises(OSError, match=r"refused|Connect"):
        saturate(f"http://127.0.0.1:{free_port()}", MESSAGES, connections=1, seconds=0.1)
