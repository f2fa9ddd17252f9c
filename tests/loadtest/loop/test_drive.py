"""Events are sent when they are due, in order."""

from contract.events import Event
from loadtest.loop.drive import MAX_EVENTS, Outbox
from model.data.synthetic.traffic_events import SentEvent


def sent(send_s: float, event_id: str = "e") -> SentEvent:
    return SentEvent(send_s, Event(event_id, "click", "", 0, ""), "original")


def test_events_are_due_in_the_order_of_their_time() -> None:
    outbox = Outbox()
    outbox.add([sent(3.0), sent(1.0, "a"), sent(1.0, "b")])
    outbox.add([sent(0.5)])
    assert outbox.due(0.4) == []
    assert outbox.due(1.0) == [sent(0.5), sent(1.0, "a"), sent(1.0, "b")]
    assert outbox.due(2.9) == []
    assert outbox.due(3.0) == [sent(3.0)]


def test_a_body_has_a_limited_number_of_events() -> None:
    outbox = Outbox()
    outbox.add([sent(float(second)) for second in range(MAX_EVENTS + 1)])
    assert len(outbox.due(1e9)) == MAX_EVENTS
    assert len(outbox.due(1e9)) == 1


def test_the_outbox_is_finished_when_it_is_empty_or_its_time_is_over() -> None:
    outbox = Outbox()
    assert not outbox.is_finished(100.0)  # more events may come
    outbox.add([sent(7.0)])
    outbox.end_s = 5.0
    assert not outbox.is_finished(4.9)
    assert outbox.is_finished(5.0)
    outbox.end_s = 100.0
    outbox.due(7.0)
    assert outbox.is_finished(8.0)
