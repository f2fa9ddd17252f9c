"""Timestamps: every format of a point in time gives the same token, and no other value is accepted as a time."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.encode import Encoder
from contract.reader import BadFeature
from contract.schema import FeatureSchema, Field
from contract.timestamps import MAX_MILLISECONDS, MAX_SECONDS, MIN_MILLISECONDS, MIN_SECONDS, timestamp
from contract.tokens import tokenizer
from contract.vocabulary import build_vocabulary
from tests.support.timestamps import ZONES, all_notations

ISTANBUL = "Europe/Istanbul"
SCHEMA = FeatureSchema(
    (
        Field("user", "context"),
        Field("hour", "context", transform="hour", timezone=ISTANBUL, source="shown_at"),
        Field("weekday", "context", transform="weekday", timezone=ISTANBUL, source="shown_at"),
        Field("day", "context", transform="day", source="shown_at", missing=("never", "-1", "nan")),
        Field("ad", "candidate"),
        Field("age", "candidate", transform="weekday", source="made"),
    )
)


@given(all_notations(), st.sampled_from(ZONES))
def test_every_notation_of_a_moment_gives_the_same_tokens(drawn: tuple[int, list[Any]], zone: str) -> None:
    seconds, values = drawn
    local = datetime.fromtimestamp(seconds, ZoneInfo(zone))
    expected = [str(local.hour), str(local.isoweekday()), str(local.day)]
    readers = [tokenizer(Field("x", "context", transform=part, timezone=zone)) for part in ("hour", "weekday", "day")]
    for value in values:
        assert timestamp(value) == seconds, value
        assert [read(value) for read in readers] == expected, value


def test_text_without_an_offset_is_in_utc_and_a_date_is_its_midnight() -> None:
    assert timestamp("2026-01-31 21:00") == timestamp("2026-01-31T21:00:00Z") == 1769893200
    assert timestamp("2026-01-31") == timestamp("2026-01-31T00:00:00+00:00")
    assert timestamp("1969-12-31T23:59:59.5Z") == -1  # rounded down


def test_daylight_saving_time_changes_the_hour() -> None:
    read = tokenizer(Field("hour", "context", transform="hour", timezone="America/New_York"))
    assert [read("2026-01-15T12:00Z"), read("2026-07-15T12:00Z")] == ["7", "8"]


@pytest.mark.parametrize("value", [MIN_SECONDS, MAX_SECONDS - 1, MIN_MILLISECONDS, MAX_MILLISECONDS - 1])
def test_numbers_are_seconds_or_milliseconds_by_their_size(value: int) -> None:
    assert timestamp(value) == timestamp(float(value)) == (value if value < 10**11 else value // 1000)


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, MIN_SECONDS - 1, MAX_SECONDS, MIN_MILLISECONDS - 1, MAX_MILLISECONDS, float("nan"), float("inf")),
        *(
            1_769_893_200_000_000,
            20260131,
            "20260131",
            202601312100,
            "202601312100",
            20260131210000,
            "20260131210000",
            "14102100",
        ),
        *(10**400, "1e400", "9" * 5000, True, [], {}, "now", "21:00", "2026-1-31", "2026-13-01", "2026-02-29"),
        *("2026-01-31x21:00:00Z", "2026-01-31T24:01:00Z", "2026-01-31T21:00:60Z", "0000-00-00 00:00:00", "2026-W05-6"),
        *("2026-01-31T21", "2026-01-31T21:00:00+25:00", "٢٠٢٦-٠١-٣١"),
    ],
)
def test_value_that_is_not_a_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"must be an ISO 8601 time .*Unix seconds or milliseconds") as refused:
        timestamp(value)
    assert len(str(refused.value)) < 300


def test_number_with_too_many_digits_to_print_is_refused() -> None:
    with pytest.raises(ValueError, match="got a larger number"):
        timestamp(10**5000)
    for digits in (4000, 5000):
        with pytest.raises(ValueError, match="got a negative number"):
            timestamp(-(10**digits))


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_time_outside_the_calendar_of_the_zone_is_refused(value: str) -> None:
    zone = "America/New_York" if value.startswith("0001") else "Pacific/Apia"
    with pytest.raises(ValueError, match="outside the years 1 to 9999"):
        tokenizer(Field("hour", "context", transform="hour", timezone=zone))(value)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_absent_time_is_missing(value: str | None) -> None:
    assert timestamp(value) is None


def test_declared_values_are_missing_in_any_notation() -> None:
    read = tokenizer(Field("day", "context", transform="day", missing=("never", "-1.0", "0")))
    assert [read(value) for value in ("never", " never ", -1, -1.0, 0, "0", "-1.0", 1769893200)] == [
        *[None] * 7,
        "31",
    ]


def test_numeric_text_is_compared_with_the_markers_as_a_number() -> None:
    read = tokenizer(Field("day", "context", transform="day", missing=("-1", "1", "n/a")))
    assert [read(value) for value in ("-1.0", " -1 ", "-1e0", "1.0", 1, "n/a")] == [None] * 6
    for value in (True, "-2", "１"):
        with pytest.raises(ValueError, match="must be an ISO 8601 time"):
            read(value)


def test_one_raw_timestamp_feeds_several_fields() -> None:
    encoder = Encoder(SCHEMA, strict=True)
    context = {"user": "u", "shown_at": "2026-01-31T21:30:00Z"}
    tokens = encoder.tokens(context, [{"ad": "a", "made": 1769893200}])
    assert [column.tokens for column in tokens.context] == [["u"], ["0"], ["7"], ["31"]]
    assert tokens.candidates[1].tokens == ["6"]
    assert encoder.names == {"user", "shown_at", "ad", "made"}
    hours = build_vocabulary(["23", "0"])
    assert encoder.ids(
        tokens, {"user": hours, "weekday": hours, "day": hours, "ad": hours, "age": hours, "hour": hours}
    )[0].context_ids.tolist() == [[0, 3, 0, 0]]


def test_a_field_that_reads_another_name_is_not_looked_up_under_its_own() -> None:
    encoder = Encoder(SCHEMA)
    tokens = encoder.tokens({"user": "u", "hour": 7, "shown_at": None}, [{"ad": "a", "age": 1, "moon": 2}])
    assert tokens.missing == {"hour": 1, "weekday": 1, "day": 1, "age": 1}
    assert tokens.ignored == {"context": 1, "candidate": 2}
    complete = encoder.tokens({"user": "u", "shown_at": 1769893200, "x": 1}, [{"ad": "a", "made": 1769893200}])
    assert (complete.missing, complete.ignored) == ({}, {"context": 1, "candidate": 0})
    with pytest.raises(
        BadFeature, match=r"\$\.context\.hour: unknown context field 'hour': expected one of shown_at, us"
    ):
        Encoder(SCHEMA, strict=True).tokens({"user": "u", "hour": 7}, [])
    with pytest.raises(BadFeature, match=r"\$\.context\.shown_at: field 'shown_at' is missing"):
        Encoder(SCHEMA, strict=True).tokens({"user": "u"}, [])


def test_invalid_timestamp_is_refused_with_its_path() -> None:
    with pytest.raises(BadFeature) as refused:
        Encoder(SCHEMA).tokens({"shown_at": "yesterday"}, [{}])
    assert refused.value.path == "$.context.shown_at"
    assert refused.value.reason.startswith("field 'shown_at' must be an ISO 8601 time")
    tokens = Encoder(SCHEMA).tokens({}, [{"made": 5}, {"made": "2026-01-31"}], skip_bad=True)
    assert tokens.rows == [1]
    assert tokens.errors[0].path == "$.candidates[0].features.made"
