"""A closed loop keeps every connection busy, and counts what is answered in its time."""

import pytest

from loadtest.openloop.message import message
from loadtest.openloop.saturate import saturate
from loadtest.servers import free_port
from tests.support.http_servers import always, answer, listening

MESSAGES = [message(b"{}")]


@pytest.mark.timing
def test_each_connection_has_one_request_after_the_other() -> None:
    """A server that takes a tenth of a second answers ten times a second on each connection."""
    with listening(always(answer(b"ok"), pause_s=0.1)) as url:
        one = saturate(url, MESSAGES, connections=1, seconds=1.0)
        four = saturate(url, MESSAGES, connections=4, seconds=1.0)
    assert 6 <= one.good <= 10
    assert 3 * one.good <= four.good <= 40
    assert one.per_s == one.good / 1.0
    assert one.late == 1  # on its way when the time was up


def test_what_is_no_200_is_no_answer() -> None:
    with listening(always(answer(b"no", status="429 Too Many Requests"), pause_s=0.05)) as url:
        answered = saturate(url, MESSAGES, connections=2, seconds=0.5)
    assert answered.good == 0
    assert answered.other >= 10


def test_a_connection_that_ends_with_its_answer_is_not_waited_for() -> None:
    with listening(always(answer(b"ok", "Connection: close"))) as url:
        assert saturate(url, MESSAGES, connections=3, seconds=0.3).good == 3


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError, match=r"refused|Connect"):
        saturate(f"http://127.0.0.1:{free_port()}", MESSAGES, connections=1, seconds=0.1)
