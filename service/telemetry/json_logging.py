"""The log: one JSON object per line, on standard error.

The log contains no feature values. An exception that a request caused is logged with its type and stack frames, but
without its message, which may quote a value. CTR_LOG_VALUES adds the message and the request's body.
"""

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

MAX_CHARS = 8 * 1024  # maximum length of one member of the JSON object
FIELDS = "fields"  # The attribute of a log record that holds what `extra=fields(...)` added.


def set_up(stream: TextIO | None = None) -> None:
    """Configure the root logger, and with it Uvicorn's loggers. Call this once per process.

    Args:
        stream: Where to write. None means standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def fields(**values: Any) -> dict[str, Any]:
    """Return an `extra` argument for a log call that adds members to the line, such as request_id."""
    return {FIELDS: values}


class JsonLines(logging.Formatter):
    """Format a record as a JSON object: time, level, logger, message, the members of `fields()`, and exception."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except Exception:  # The arguments do not match the format string. The line must still be logged.
            message = str(record.msg)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": truncate(message),
        }
        line |= {name: truncate(value) for name, value in getattr(record, FIELDS, {}).items()}
        if record.exc_info:
            line["exception"] = truncate("".join(traceback.format_exception(*record.exc_info)))
        return msgspec.json.encode(line, enc_hook=repr).decode()


def frames(error: BaseException) -> str:
    """Return the types and stack frames of an exception and its causes, without their messages."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < 10:
        parts.append("".join(traceback.format_tb(cause.__traceback__)) + type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\ncaused by\n".join(parts)


def truncate(value: Any) -> Any:
    """Return a string cut to MAX_CHARS and encodable as UTF-8. Return any other value unchanged."""
    if not isinstance(value, str):
        return value
    # A lone surrogate cannot be encoded as UTF-8.
    text = value.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}... ({len(text)} characters)"
