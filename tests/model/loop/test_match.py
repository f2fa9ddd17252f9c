"""Which category each event gets, and which click and conversions an impression gets."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.events import EventType
from contract.request_log import LoggedCandidate
from model.loop.lines import BadLineError, Event, parse_event, parse_request
from model.loop.match import HOUR_MS, Matched, Rules, match
from tests.support.loop_logs import AD, START_S, event, request, score_id

HOUR = 3600
WINDOW, LATENESS = 600, HOUR
FINAL = HOUR + WINDOW + LATENESS  # when the hour that begins at START_S is final, in seconds after it
ID = score_id(1)


def rules(until_s: float = 10 * FINAL) -> Rules:
    return Rules(WINDOW * 1000, LATENESS * 1000, int((START_S + until_s) * 1000))


def matched(*events: bytes, line: bytes | None = None, until_s: float = 10 * FINAL) -> Matched:
    return match(
        parse_request(line) if line else parse_request(request(1)), [*map(parse_event, events)], rules(until_s)
    )


def outcomes(result: Matched) -> Counter[tuple[str, str]]:
    return Counter((event.stored.type, category) for event, category in result.outcomes)


def categories(*events: bytes, line: bytes | None = None, until_s: float = 10 * FINAL) -> list[str]:
    """Return the category of each event, in the given order."""
    found = {id_of(event): category for event, category in matched(*events, line=line, until_s=until_s).outcomes}
    return [found[id_of(parse_event(one))] for one in events]


def id_of(event: Event) -> tuple[str, int, str]:
    return event.stored.type, event.time_ms, event.stored.event_id + event.stored.received


def test_an_impression_gets_its_first_click_within_the_window() -> None:
    result = matched(
        event("click", ID, 70, event_id="second"),
        event("impression", ID, 10, position=3, propensity=0.25),
        event("click", ID, 30, event_id="first"),
    )
    assert [(one.event.time_ms, one.click and one.click.stored.event_id) for one in result.impressions] == [
        (int((START_S + 10) * 1000), "first")
    ]
    assert result.click_delays_ms == [20_000]
    assert outcomes(result) == {("impression", "joined"): 1, ("click", "joined"): 1, ("click", "duplicate"): 1}


def test_conversions_with_different_ids_all_count() -> None:
    result = matched(
        event("impression", ID, 0),
        event("conversion", ID, 5, event_id="b", value=2.5),
        event("conversion", ID, 4, event_id="a", value=1.5),
        event("conversion", ID, 6, event_id="a", value=9),
        event("conversion", ID, WINDOW + 1, event_id="c", value=9),
    )
    assert [one.stored.value for one in result.impressions[0].conversions] == [1.5, 2.5]
    assert outcomes(result) == {
        ("impression", "joined"): 1,
        ("conversion", "joined"): 2,
        ("conversion", "duplicate"): 1,
        ("conversion", "outside window"): 1,
    }


def test_the_first_impression_wins_by_time_and_then_by_event_id() -> None:
    impressions = [
        event("impression", ID, 5, event_id="b"),
        event("impression", ID, 5, event_id="a"),
        event("impression", ID, 6, event_id="0"),
    ]
    assert categories(*impressions) == ["duplicate", "joined", "duplicate"]


def test_the_window_begins_five_minutes_before_the_impression_because_clocks_differ() -> None:
    impression = event("impression", ID, 400)
    clicks = [event("click", ID, second) for second in (99, 100, 400 + WINDOW, 401 + WINDOW)]
    result = [categories(impression, click)[1] for click in clicks]
    assert result == ["outside window", "joined", "joined", "outside window"]
    assert matched(impression, clicks[1]).click_delays_ms == [0]
    assert matched(impression, clicks[3]).click_delays_ms == [(WINDOW + 1) * 1000]


def test_requests_and_candidates_that_are_not_in_the_log() -> None:
    unsampled, logged = score_id(2, logged=False), score_id(3)
    for of, category in ((unsampled, "not sampled"), (logged, "without request")):
        result = match(None, [parse_event(event("impression", of, 1)), parse_event(event("click", of, 2))], rules())
        assert outcomes(result) == {("impression", category): 1, ("click", category): 1}
    line = request(1, candidates=[AD, LoggedCandidate(4, "x", AD, inclusion=0.5)], candidate_count=6)
    shown = [event("impression", ID, 1, candidate=candidate) for candidate in (0, 1, 4, 5, 6)]
    assert categories(*shown, line=line) == ["joined", "not sampled", "joined", "not sampled", "invalid"]


def test_a_request_that_was_not_scored_has_no_candidates() -> None:
    line = request(1, candidates=[], outcome="deadline")
    assert categories(event("impression", ID, 1), line=line) == ["invalid"]


def test_a_click_without_an_impression() -> None:
    assert categories(event("click", ID, 1)) == ["without impression"]
    assert categories(event("click", ID, 1), until_s=FINAL - 1) == ["pending"]


def test_an_event_long_before_the_answer_is_invalid() -> None:
    assert categories(event("impression", ID, -300)) == ["joined"]
    with pytest.raises(BadLineError, match="the event is from 301 s before the answer") as raised:
        parse_event(event("impression", ID, -301))
    assert (raised.value.problem, raised.value.type) == ("invalid", "impression")


def test_the_time_of_a_clock_far_ahead_is_replaced_by_the_time_of_receipt() -> None:
    ahead = parse_event(event("impression", ID, 401, received_s=100))
    assert (ahead.time_ms, ahead.sent_ms) == (int((START_S + 100) * 1000), int((START_S + 401) * 1000))
    slightly_ahead = parse_event(event("impression", ID, 399, received_s=100))
    assert slightly_ahead.time_ms == int((START_S + 399) * 1000)


def test_an_hour_is_pending_until_window_and_lateness_have_passed() -> None:
    events = event("impression", ID, HOUR - 1), event("click", ID, HOUR)
    assert categories(*events, until_s=FINAL - 0.001) == ["pending", "pending"]
    assert not matched(*events, until_s=FINAL - 0.001).impressions
    assert categories(*events, until_s=FINAL) == ["joined", "joined"]


def test_lateness_is_measured_by_the_time_of_receipt() -> None:
    impression = event("impression", ID, 1)
    on_time = event("click", ID, 2, received_s=FINAL - 0.001)
    late = event("click", ID, 1.5, received_s=FINAL, event_id="late")
    assert categories(impression, on_time, late) == ["joined", "joined", "duplicate"]
    result = matched(impression, late)
    assert outcomes(result) == {("impression", "joined"): 1, ("click", "late"): 1}
    assert result.impressions[0].click is None
    assert [one.event.stored.event_id for one in result.late] == ["late"]
    assert categories(event("impression", ID, 1, received_s=FINAL), on_time) == ["late", "without impression"]


def test_a_late_impression_does_not_replace_one_on_time() -> None:
    events = event("impression", ID, 1, received_s=FINAL + 5, event_id="late"), event("impression", ID, 9)
    assert categories(*events) == ["duplicate", "joined"]


def test_equal_event_ids_of_different_events_do_not_hide_each_other() -> None:
    line = request(1, candidates=[AD, AD])
    events = [event("impression", ID, 1, candidate=candidate, event_id="same") for candidate in (0, 1)]
    events.append(event("click", ID, 2, event_id="same"))
    result = matched(*events, line=line)
    assert outcomes(result) == {("impression", "joined"): 2, ("click", "joined"): 1}


KINDS: tuple[EventType, ...] = ("impression", "impression", "click", "conversion")
TIMES = st.one_of(st.integers(-300, 2 * FINAL), st.integers(0, 20))


@st.composite
def any_events(draw: st.DrawFn) -> list[Event]:
    """Return events of two candidates, of which most are within a few seconds and some are received much later."""
    drawn = draw(
        st.lists(
            st.tuples(
                st.sampled_from(KINDS),
                st.integers(0, 1),
                TIMES,
                st.one_of(st.just(0), st.integers(0, 30), st.integers(0, 2 * FINAL)),
                st.sampled_from("ab"),
            ),
            max_size=12,
        )
    )
    return [
        parse_event(event(kind, ID, time, candidate=candidate, event_id=name, received_s=max(0, time) + delay))
        for kind, candidate, time, delay, name in drawn
    ]


@given(any_events(), st.integers(0, 4 * FINAL), st.randoms())
def test_every_event_has_one_category_whatever_the_order(events: list[Event], until_s: int, random: object) -> None:
    line = parse_request(request(1, candidates=[AD, AD]))
    result = match(line, events, rules(until_s))
    assert len(result.outcomes) == len(events)
    assert outcomes(result)["impression", "joined"] == len(result.impressions)
    assert outcomes(result)["click", "joined"] == sum(one.click is not None for one in result.impressions)
    assert sum(n for (_, category), n in outcomes(result).items() if category == "late") == len(result.late)
    shuffled = events[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert outcomes(match(line, shuffled, rules(until_s))) == outcomes(result)


@given(any_events(), st.integers(0, 4 * FINAL), st.integers(0, 4 * FINAL))
def test_later_events_never_change_a_final_hour(events: list[Event], one_s: int, other_s: int) -> None:
    earlier, later = (rules(until_s) for until_s in sorted((one_s, other_s)))
    line = parse_request(request(1, candidates=[AD, AD]))
    then = match(line, [event for event in events if event.received_ms < earlier.watermark_ms], earlier)
    now = match(line, events, later)
    was_final = [one for one in now.impressions if earlier.is_final(one.event.time_ms)]
    assert was_final == then.impressions
    was_late = [one for one in now.late if one.event.received_ms // HOUR_MS < earlier.watermark_ms // HOUR_MS]
    assert was_late == [one for one in then.late if one.event.received_ms // HOUR_MS < earlier.watermark_ms // HOUR_MS]
