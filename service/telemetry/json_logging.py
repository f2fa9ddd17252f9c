"""The log: one JSON object a line, on standard error.

What a request said is not in it. An exception that a request caused is there with its type and its frames; its message,
which may quote a value, and the request's body only with CTR_LOG_VALUES.
"""

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

LONGEST = 8 * 1024  # characters of one member
FIELDS = "fields"  # of a record: what `extra=fields(...)` gave


def set_up(stream: TextIO | None = None) -> None:
    """The root logger's, once for a process; Uvicorn's as well."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def fields(**values: Any) -> dict[str, Any]:
    """For `extra`: members of the line beside the usual ones, such as request_id."""
    return {FIELDS: values}


class JsonLines(logging.Formatter):
    """Members: time, level, logger, message; those of `fields()`; and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        line |= {name: _short(value) for name, value in getattr(record, FIELDS, {}).items()}
        if record.exc_info:
            line["exception"] = _short("".join(traceback.format_exception(*record.exc_info)))
        return msgspec.json.encode(line, enc_hook=repr).decode()


def frames(error: BaseException) -> str:
    """An exception and what caused it, without their messages."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < 10:
        parts.append("".join(traceback.format_tb(cause.__traceback__)) + type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\ncaused by\n".join(parts)


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception:  # wrong arguments for its format: a slip there must not lose the line
        text = str(record.msg)
    return str(_short(text))


def _short(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A lone surrogate cannot be written.
    text = value.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"
