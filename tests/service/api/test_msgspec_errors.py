"""The messages of msgspec that service/api/msgspec_errors.py parses, and the results of parsing them.

If a test here fails after an upgrade of msgspec, the messages have changed: update the patterns in msgspec_errors.py.
"""

from typing import Any

import msgspec
import pytest

from service.api.msgspec_errors import InvalidValue, json_path, parse_validation_error
from service.api.schemas import ExplainRequest, ScoreRequest

ONE = '"context": {}, "candidates": [{"id": 1, "features": {}}]'
FEATURES = ("candidates", 0, "features")


def validation_error(body: str, type_: Any = ScoreRequest) -> msgspec.ValidationError:
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.json.decode(body, type=type_)
    return raised.value


@pytest.mark.parametrize(
    ("body", "message", "parsed"),
    [
        ("[]", "Expected `object`, got `array`", InvalidValue((), got="a list")),
        (
            '{"context": 1.5}',
            "Expected `object`, got `float` - at `$.context`",
            InvalidValue(("context",), got="a decimal number"),
        ),
        (
            '{"context": {}, "candidates": [{}, true]}',
            "Object missing required field `id` - at `$.candidates[0]`",
            InvalidValue(("candidates", 0), missing_field="id"),
        ),
        (
            '{"context": {}, "candidates": [{"id": 1, "features": {}}, true]}',
            "Expected `object`, got `bool` - at `$.candidates[1]`",
            InvalidValue(("candidates", 1), got="a boolean"),
        ),
        (
            '{"context": {}, "candidates": [{"id": {}}]}',
            "Expected `int | str`, got `object` - at `$.candidates[0].id`",
            InvalidValue(("candidates", 0, "id"), got="an object"),
        ),
        (
            '{"context": {}, "candidates": [{"id": 1, "features": 3}]}',
            "Expected `object`, got `int` - at `$.candidates[0].features`",
            InvalidValue(FEATURES, got="an integer"),
        ),
        (
            f'{{{ONE}, "cascade": "x"}}',
            "Expected `bool`, got `str` - at `$.cascade`",
            InvalidValue(("cascade",), got="a string"),
        ),
        (
            f'{{{ONE}, "cascade": null}}',
            "Expected `bool`, got `null` - at `$.cascade`",
            InvalidValue(("cascade",), got="null"),
        ),
    ],
)
def test_a_wrong_type(body: str, message: str, parsed: InvalidValue) -> None:
    error = validation_error(body)
    assert str(error) == message
    assert parse_validation_error(error) == parsed


@pytest.mark.parametrize(
    ("body", "message", "path"),
    [
        ('{"context": {}, "candidates": []}', "Expected `array` of length >= 1 - at `$.candidates`", ("candidates",)),
        (f'{{{ONE}, "top_k": 0}}', "Expected `int` >= 1 - at `$.top_k`", ("top_k",)),
        (f'{{{ONE}, "timeout_ms": 10001}}', "Expected `int` <= 10000 - at `$.timeout_ms`", ("timeout_ms",)),
    ],
)
def test_a_value_out_of_bounds(body: str, message: str, path: tuple[str]) -> None:
    error = validation_error(body)
    assert str(error) == message
    assert parse_validation_error(error) == InvalidValue(path)


def test_an_unknown_field() -> None:
    for name in ("x", "two\nlines", "x - at `$.candidates[99][...]`", "`"):
        error = validation_error(f"{{{ONE}, {msgspec.json.encode(name).decode()}: 1}}")
        assert str(error) == f"Object contains unknown field `{name}`"
        assert parse_validation_error(error) == InvalidValue((), unknown_field=name)


def test_a_missing_field() -> None:
    error = validation_error("{}", ExplainRequest)
    assert str(error) == "Object missing required field `context`"
    assert parse_validation_error(error) == InvalidValue((), missing_field="context")


@pytest.mark.parametrize("value", ["drop", "it's", "two\nlines", "x' - at `$.candidates[9][...]`"])
def test_a_wrong_choice_is_quoted_and_may_look_like_a_path(value: str) -> None:
    error = validation_error(f'{{{ONE}, "on_bad_candidate": {msgspec.json.encode(value).decode()}}}')
    assert str(error) == f"Invalid enum value {value!r} - at `$.on_bad_candidate`"
    assert parse_validation_error(error) == InvalidValue(("on_bad_candidate",), got=repr(value))


@pytest.mark.parametrize(
    ("body", "type_", "message", "parsed"),
    [
        (
            '{"context": {"age": 1e999}}',
            ScoreRequest,
            "Number out of range - at `$.context[...]`",
            InvalidValue(("context",), message="Number out of range"),
        ),
        (
            '{"context": {}, "candidates": [{"id": 1, "features": {"a": [1, {"b": ' + "9" * 5000 + "}]}}]}",
            ScoreRequest,
            "Integer value out of range - at `$.candidates[0].features[...][1][...]`",
            InvalidValue(FEATURES, message="Integer value out of range"),
        ),
        (
            '{"a": 1e999}',
            dict[str, Any],
            "Number out of range - at `$[...]`",
            InvalidValue((), message="Number out of range"),
        ),
    ],
)
def test_an_error_in_a_dict_has_the_path_of_the_dict(body: str, type_: Any, message: str, parsed: InvalidValue) -> None:
    error = validation_error(body, type_)
    assert str(error) == message
    assert parse_validation_error(error) == parsed


def test_a_message_in_an_unknown_format_is_returned_unchanged_but_truncated() -> None:
    assert parse_validation_error(msgspec.ValidationError("Bad luck")) == InvalidValue((), message="Bad luck")
    parsed = parse_validation_error(msgspec.ValidationError("x" * 5000 + " - at `$.top_k`"))
    assert parsed.path == ("top_k",)
    assert len(parsed.message or "") < 300


def test_a_json_path() -> None:
    assert json_path(()) == "$"
    assert json_path(("candidates", 3, "id")) == "$.candidates[3].id"
