"""Events: each is valid or has a reason, and never affects the others."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.events import StoredEvent
from contract.score_ids import new_score_id
from service.collect.events import CheckedEvents, Limits, check_events
from service.errors import NotJson, TooLarge

NOW_S = 1_780_000_000.25
LIMITS = Limits(max_events=100, max_skew_s=3600.0)
SCORE_ID = new_score_id(NOW_S - 10, logged=True, random=1)
EVENT = {"event_id": "e", "type": "click", "score_id": SCORE_ID, "candidate": 3, "time": "2026-05-28T20:26:35Z"}


def check(body: bytes, client: str | None = None) -> CheckedEvents:
    return check_events(body, NOW_S, client, LIMITS)


def encoded(*events: Any) -> bytes:
    return json.dumps(events).encode()


def at(seconds: float) -> str:
    return datetime.fromtimestamp(NOW_S + seconds, UTC).isoformat()


def reason(**members: Any) -> str:
    checked = check(encoded(EVENT | members))
    (invalid,) = checked.invalid
    assert (checked.lines, checked.types.total()) == (b"", 0)
    return invalid.reason


def test_an_event_is_stored_with_its_time_in_utc_and_when_it_was_received() -> None:
    event = EVENT | {"time": "2026-05-28T22:26:35.5+02:00", "position": 2, "propensity": 0.25, "value": 1.5}
    (stored,) = msgspec.json.Decoder(StoredEvent).decode_lines(check(encoded(event), "shop").lines)
    assert msgspec.to_builtins(stored) == event | {
        "time": "2026-05-28T20:26:35.500000+00:00",
        "received": "2026-05-28T20:26:40.250+00:00",
        "client": "shop",
    }


@pytest.mark.parametrize(
    "body",
    [
        encoded(EVENT, EVENT),
        json.dumps([EVENT, EVENT], indent=2).encode(),
        b"\xef\xbb\xbf" + encoded(EVENT, EVENT),
        b"%b\n%b" % ((json.dumps(EVENT).encode(),) * 2),
        b"\r\n%b\r\n\r\n%b\r\n" % ((json.dumps(EVENT).encode(),) * 2),
    ],
    ids=["list", "indented", "byte order mark", "lines", "carriage returns"],
)
def test_a_body_is_a_list_or_lines(body: bytes) -> None:
    checked = check(body)
    assert (checked.types, checked.invalid) == ({"click": 2}, [])


def test_a_body_is_a_single_object_on_one_line_or_several() -> None:
    for indent in (None, 2):
        assert check(json.dumps(EVENT, indent=indent).encode()).types == {"click": 1}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"score_id": "5b0c6d5a"}, "score_id: expected the score_id of a response"),
        ({"score_id": new_score_id(NOW_S + 3700, True)}, "score_id: it is of an answer in the future"),
        ({"time": "2026-05-28T20:26:35"}, "time: it has no time zone"),
        ({"time": "yesterday"}, "time: expected an ISO 8601 time with a time zone"),
        ({"time": 1_780_000_000}, "time: expected an ISO 8601 time with a time zone.*, got an integer"),
        ({"time": at(-3700)}, "time: more than 3600 s before the answer"),
        ({"time": at(3700)}, "time: more than 3600 s in the future"),
        ({"time": "0001-01-01T00:00:00+23:59"}, "before the answer"),
        ({"time": "9999-12-31T23:59:59-23:59"}, "in the future"),
        ({"type": "view"}, '"impression", "click" or "conversion", got .view.'),
        ({"candidate": -1}, "candidate: expected a whole number from 0 to"),
        ({"candidate": 10**30}, "candidate: expected a whole number from 0 to"),
        ({"propensity": 0}, "propensity: expected a number above 0"),
        ({"value": None}, "value: expected a finite number, got null"),
        ({"event_id": ""}, "event_id: expected a string of 1 to 128 characters"),
        ({"event_id": "x" * 129}, "event_id: expected a string of 1 to 128 characters"),
        ({"ad": 1, "Value": 2}, "unknown: 'ad', 'Value'. An event has event_id"),
    ],
)
def test_the_reason_names_the_member_and_what_is_expected(members: dict[str, Any], expected: str) -> None:
    assert re.search(expected, reason(**members))


def test_an_event_with_very_many_unknown_members_is_refused_quickly() -> None:
    body = b"{" + b",".join(b'"k%d":1' % number for number in range(95_000)) + b"}"
    start_s = time.process_time()
    (invalid,) = check(body).invalid
    assert time.process_time() - start_s < 0.2
    assert invalid.reason.startswith("unknown: 'k0'. An event has")


def test_a_missing_member_is_named() -> None:
    (invalid,) = check(encoded({name: value for name, value in EVENT.items() if name != "candidate"})).invalid
    assert invalid.reason.startswith("candidate is missing")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999", "01"])
def test_a_number_that_is_not_finite_affects_only_its_event(number: str) -> None:
    wrong = json.dumps(EVENT)[:-1] + f', "value": {number}}}'
    right = json.dumps(EVENT)
    for body in (f"[{right}, {wrong}, {right}]", f"{right}\n{wrong}\n{right}"):
        checked = check(body.encode())
        assert [invalid.position for invalid in checked.invalid] == [1]
        assert checked.types == {"click": 2}
        assert len(checked.lines.splitlines()) == 2


def test_clock_skew_above_five_minutes_is_counted() -> None:
    events = [EVENT | {"time": at(seconds)} for seconds in (-320, -300, 0, 290, 310)]
    checked = check(encoded(*events))
    assert (checked.skewed, checked.types.total()) == (2, 5)


def test_a_body_with_too_many_events_is_too_large() -> None:
    assert check(encoded(*[EVENT] * 100)).types == {"click": 100}
    for wrong in (EVENT, 1):
        with pytest.raises(TooLarge, match="101 events; at most 100 are allowed"):
            check(encoded(*[EVENT] * 100, wrong))


@pytest.mark.parametrize("body", [b"", b" \n ", b"[]", b"[", b"[1,", b"[1] [2]", b"[" * 100_000])
def test_a_body_without_events_is_not_json(body: bytes) -> None:
    with pytest.raises(NotJson):
        check(body)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
TIMES = st.datetimes(timezones=st.timezones() | st.just(UTC)).map(lambda moment: moment.isoformat())
NEARLY_EVENTS = st.fixed_dictionaries(
    {
        "event_id": st.text(max_size=4) | JSON_VALUES,
        "type": st.sampled_from(["impression", "click", "conversion", "view"]),
        "score_id": st.sampled_from([SCORE_ID, SCORE_ID.upper(), ""]),
        "candidate": st.integers(-1, 4) | JSON_VALUES,
        "time": TIMES | st.timedeltas(timedelta(hours=-2), timedelta(hours=2)).map(lambda d: at(d.total_seconds())),
    },
    optional={"value": st.floats() | JSON_VALUES, "extra": JSON_VALUES},
)


@given(st.lists(NEARLY_EVENTS | JSON_VALUES, min_size=1, max_size=6), st.booleans())
def test_every_event_is_either_stored_or_has_a_reason(events: list[Any], as_lines: bool) -> None:
    parts = [json.dumps(event) for event in events]
    # A body that begins with a bracket is a list.
    body = "\n".join(parts) if as_lines and not parts[0].startswith("[") else f"[{','.join(parts)}]"
    checked = check(body.encode())
    stored = msgspec.json.Decoder(StoredEvent).decode_lines(checked.lines)
    assert len(stored) == checked.types.total()
    assert len(stored) + len(checked.invalid) == len(events)
    assert all(0 <= invalid.position < len(events) and invalid.reason for invalid in checked.invalid)
    for event in stored:
        assert datetime.fromisoformat(event.time).utcoffset() == timedelta(0)


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\ \n\x000eE+-.u1tnN', max_size=200).map(str.encode))
def test_no_body_is_an_unexpected_error(body: bytes) -> None:
    try:
        checked = check(body)
    except NotJson:
        return
    assert checked.invalid
    assert not checked.lines
    assert msgspec.json.encode(checked.invalid)
