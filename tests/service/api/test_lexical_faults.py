"""Faults of strings and literals: exactly the ones that msgspec refuses are found, and their kind is known."""

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.lexical_faults import MAX_FAULTS, confine_faults, describe_fault
from service.errors import NotJson
from tests.support.examples import examples
from tests.support.timing import shortest_cpu_s

LONE = [
    "\\\\ud83d\\ude00",
    "\\ud83d\\\\",
    "\\ud83d\\\\\\ude00",
    "\\\\\\ude00",
    "\\ud83d\\ude00x\\ud83d",
    "\\ud83d",
    "\\uDE00",
    "\\ud83d\\ud83d",
    "\\\\\\ud83d",
    "\\ud83d\\n",
    "\\ud83d\\ude00\\ude00",
]
WHOLE = ["\\ud83d\\ude00", "\\\\ud83d", "\\n\\\\ud83d", "ud83d", "\\u00e9", "\u00e9\u20ac\U0001f600", "\\/\\b\\f", ""]


def message(value: bytes) -> str:
    with pytest.raises(UnicodeDecodeError) as error:
        msgspec.json.decode(confine_faults(value))
    return describe_fault(error.value)


@pytest.mark.parametrize("text", LONE)
def test_half_of_a_surrogate_pair_is_a_fault(text: str) -> None:
    assert "half of a surrogate pair" in message(b'"%b"' % text.encode())
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(f'"{text}"')


@pytest.mark.parametrize("text", WHOLE)
def test_other_text_is_not_a_fault(text: str) -> None:
    value = f'"{text}"'.encode()
    assert confine_faults(value) == value
    assert msgspec.json.decode(value) == json.loads(value)


PIECES = [
    *("\\ud83d", "\\ude00", "ud83d", "\\\\", "\\n", "x", "\\u0041"),
    *("\\q", "\\u12", "\t", "\x7f", '\\"', "\u00e9"),
]
TEXTS = st.lists(st.sampled_from(PIECES).map(str.encode) | st.binary(max_size=2), max_size=6).map(b"".join)


@settings(deadline=None, max_examples=examples(1000))
@given(TEXTS.filter(lambda text: b'"' not in text.replace(rb"\\", b"").replace(rb"\"", b"")))
def test_a_string_is_a_fault_if_msgspec_refuses_it(text: bytes) -> None:
    if (len(text) - len(text.rstrip(b"\\"))) % 2:  # The quotation mark after the text would be part of it.
        text += b"\\"
    value = b'"%b"' % text
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        assert message(value)
        named = msgspec.json.decode(confine_faults(b"{%b:1}" % value))
        assert list(named.values()) == [1]
    else:
        assert confine_faults(value) == value
        assert confine_faults(b"{%b :1}" % value) == b"{%b :1}" % value


NAMES = ["true", "null", "nul", "NaN", "True", "-"]
LITERALS = st.text("0123456789+-.eE", min_size=1, max_size=6) | st.sampled_from(NAMES)


@settings(deadline=None, max_examples=examples(1000))
@given(LITERALS)
def test_a_literal_is_a_fault_if_json_does_not_have_it(literal: str) -> None:
    try:
        json.loads(literal, parse_constant=float.fromhex)
        is_json = "N" not in literal
    except ValueError:
        is_json = False
    value = literal.encode()
    if is_json:
        assert confine_faults(value) == value
    else:
        assert "Send null for a missing number" in message(value)


@settings(deadline=None, max_examples=examples(300))
@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists))
def test_json_has_no_faults(value: object) -> None:
    for body in (json.dumps(value).encode(), msgspec.json.encode(value)):
        assert confine_faults(body) == body


@settings(deadline=None, max_examples=examples(500))
@given(st.binary(max_size=60))
def test_faults_are_confined_once(body: bytes) -> None:
    names_kept = confine_faults(body)
    assert len(names_kept) < 10 * len(body) + 10


def test_a_body_may_have_ten_thousand_faults() -> None:
    assert confine_faults(b"[" + b"NaN," * MAX_FAULTS + b"1]").count(b"\xff\xffl") == MAX_FAULTS
    with pytest.raises(NotJson, match="More than 10,000 strings and literals"):
        confine_faults(b"[" + b"NaN," * (MAX_FAULTS + 1) + b"1]")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (b'"caf\xe9"', r"caf\xe9"),
        (rb'"a\ud83d"', r"a\ud83d"),
        (rb'"say \"hi\" \u0041\q"', r"say \"hi\" \u0041\q"),
        (b'"a\tb"', "a\tb"),
    ],
)
def test_an_invalid_name_is_kept_as_it_was_written(name: bytes, kept: str) -> None:
    assert msgspec.json.decode(confine_faults(b"{%b:1}" % name)) == {kept: 1}


@pytest.mark.timing
@pytest.mark.parametrize("text", [b"\xff", b"\x01", rb"\q", rb"\ud83d", b'\xff":1,"'])
def test_the_time_of_large_invalid_names_is_limited(text: bytes) -> None:
    body = b'{"%b":1}' % (text * (2**21 // len(text)))

    def confine() -> None:
        with suppress(NotJson):
            confine_faults(body)

    assert shortest_cpu_s(confine) < 0.3


@pytest.mark.timing
@pytest.mark.parametrize(
    "text", [b'"\\x",', b"NaN,", b"[", b'"\\ud83d":1,', "\u00e9\u20ac".encode(), b'"x', b"x", b"\xff"]
)
@pytest.mark.parametrize("start", [b"", b'"', b'{"a":"'])
@pytest.mark.parametrize("end", [b"", b'":1}'])
def test_the_time_of_a_large_body_is_limited(text: bytes, start: bytes, end: bytes) -> None:
    body = start + text * (2**21 // len(text)) + end

    def confine() -> None:
        try:
            confine_faults(body)
        except NotJson as problem:
            assert "More than 10,000" in problem.detail  # noqa: PT017

    assert shortest_cpu_s(confine) < 0.3
