"""Logs of requests: written by an app in this process, or line by line."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from contract.encode import Encoder
from contract.request_log import SCORED, LogLine
from contract.request_log_reader import Skipped, read_lines
from contract.score_ids import new_score_id
from contract.segments import unfinished_files
from service.request_log.lines import Identity, QueuedLine
from tests.support.app import StartApp
from tests.support.small_bundle import FIELDS

ENCODER = Encoder(FIELDS)
BODY = msgspec.json.encode({"context": {"user": "u1"}, "candidates": [{"id": "1", "features": {"item": "4001"}}]})
FIRST_FORMAT_LINE = (
    b'{"time":"2026-11-01T12:00:00.000+00:00","request_id":"r","model":"m","version":"v","context":{"user":"u1"},'
    b'"candidates":[{"id":"ad-7","features":{"item":4082}},{"id":8,"features":{"item":"4001"}}],"ctr":[0.25,null],'
    b'"degraded":[],"hashed":[]}\n'
)


def read_log(*paths: Path) -> list[LogLine]:
    """Return the lines of a log without unreadable lines."""
    skipped = Skipped()
    lines = list(read_lines(paths, skipped))
    assert skipped == Skipped()
    return lines


def read_unfinished(folder: Path) -> list[LogLine]:
    """Return the lines of the files that are still being written."""
    return read_log(*unfinished_files(folder))


async def log_of(start: StartApp, folder: Path, requests: list[dict[str, Any]], **settings: Any) -> list[LogLine]:
    """Send requests to a server that logs all of them, and return the lines of the log."""
    async with start(request_log=folder, **{"request_log_sample": 1.0, **settings}) as client:
        for request in requests:
            assert (await client.post("/v1/score", json=request)).status_code == 200
    return read_log(folder)


def a_line(body: bytes = BODY, unit: str | None = None, ctr: float = 0.5) -> QueuedLine:
    """Return a scored request with one candidate, which is ready for the log."""
    return QueuedLine(
        identity=Identity(new_score_id(1_800_000_000, True), unit, True),
        answered_s=1_800_000_000,
        request_id="r",
        model="m",
        version="v",
        outcome=SCORED,
        candidates=1,
        body=body,
        encoder=ENCODER,
        ctr=np.array([ctr]),
        logit=np.array([0.0]),
    )
