"""The log: every line is a JSON object, and it contains no feature values unless they are enabled."""

import io
import json
import logging
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.telemetry.json_logging import JsonLines, fields
from tests.support.app import StartApp, a_request, app_of


def logged(*arguments: Any, **more: Any) -> dict[str, Any]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("a.logger")
    logger.addHandler(handler)
    logger.error(*arguments, **more)
    (line,) = stream.getvalue().removesuffix("\n").split("\n")
    read: dict[str, Any] = json.loads(line)
    return read


def test_line_has_time_level_logger_and_message() -> None:
    line = logged("worker %d died", 7, extra=fields(request_id="r1", rows=3))
    assert line["message"] == "worker 7 died"
    assert (line["level"], line["logger"], line["request_id"], line["rows"]) == ("error", "a.logger", "r1", 3)
    assert line["time"].endswith("+00:00")


@given(st.text(), st.one_of(st.text(), st.binary(), st.integers(), st.floats(), st.none()))
def test_any_record_is_one_line_of_json(message: str, value: Any) -> None:
    assert "message" in logged("%s", message, extra=fields(value=value))


def test_unencodable_objects_and_wrong_arguments_are_logged() -> None:
    assert "object" in logged("odd", extra=fields(value=object()))["value"]
    assert logged("%d of %d", "one")["message"] == "%d of %d"
    assert logged("\ud800 and\nmore")["message"] == "\\ud800 and\nmore"


def test_long_message_is_truncated() -> None:
    assert len(logged("x" * 100_000)["message"]) < 9000


def test_exception_is_logged_in_its_line() -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        assert "ValueError: wrong" in logged("failed", exc_info=True)["exception"]


async def failing(client: httpx.AsyncClient) -> dict[str, Any]:
    """Send a request for which the service fails with an error that quotes a feature value."""

    value = "u1-the-user"

    def broken(*_: object) -> None:
        raise ArithmeticError(f"cannot take {value}")

    app_of(client).state.serving.model.scorer.batcher._run = broken
    answer = await client.post("/v1/score", json=a_request(context={"user": value}))
    assert answer.status_code == 500
    details: dict[str, Any] = answer.json()
    return details


async def test_failure_is_logged_with_request_id_and_frames_but_without_values(
    start: StartApp, caplog: pytest.LogCaptureFixture
) -> None:
    async with start() as client:
        details = await failing(client)
    line = JsonLines().format(next(record for record in caplog.records if record.message.endswith(" failed")))
    assert json.loads(line)["request_id"] == details["request_id"]
    assert "broken" in json.loads(line)["frames"]
    assert "ArithmeticError" in line
    assert "the-user" not in "".join(JsonLines().format(record) for record in caplog.records)


async def test_values_are_logged_if_enabled(start: StartApp, caplog: pytest.LogCaptureFixture) -> None:
    async with start(log_values=True) as client:
        await failing(client)
    line = JsonLines().format(next(record for record in caplog.records if record.message.endswith(" failed")))
    assert "cannot take u1-the-user" in line
    assert "u1-the-user" in json.loads(line)["body"]
