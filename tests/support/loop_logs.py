"""Request logs and events for tests of the online loop, written with the structs of the contract."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from contract.events import EventType, StoredEvent
from contract.request_log import LoggedCandidate, LogLine
from contract.score_ids import new_score_id
from contract.segments import EVENTS, FINISHED, REQUESTS

START_S = datetime(2026, 11, 30, 20, tzinfo=UTC).timestamp()
AD = {"ad": "a1"}


def iso(time_s: float) -> str:
    """Format a time, in seconds since START_S, as the service does."""
    moment = datetime.fromtimestamp(START_S, UTC) + timedelta(seconds=time_s)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def score_id(number: int, time_s: float = 0.0, logged: bool = True) -> str:
    """Return the score id of a request, answered at a time in seconds since START_S."""
    return new_score_id(START_S + time_s, logged, random=number * 2)


def request(
    number: int,
    time_s: float = 0.0,
    candidates: Iterable[LoggedCandidate | Mapping[str, Any]] = (AD,),
    candidate_count: int | None = None,
    context: Mapping[str, Any] | None = None,
    **others: Any,
) -> bytes:
    """Return a line of the request log. A candidate may be given by its features only."""
    logged = [
        candidate
        if isinstance(candidate, LoggedCandidate)
        else LoggedCandidate(position, f"id-{position}", dict(candidate), ctr=0.1, logit=-2.2)
        for position, candidate in enumerate(candidates)
    ]
    line = LogLine(
        time=iso(time_s),
        score_id=score_id(number, time_s),
        request_id=f"r{number}",
        model="stec",
        version="v1",
        context=dict(context if context is not None else {"user": "u"}),
        candidates=logged,
        candidate_count=len(logged) if candidate_count is None else candidate_count,
        **others,
    )
    return msgspec.json.encode(line)


def event(
    kind: EventType,
    of: str,
    time_s: float,
    *,
    candidate: int = 0,
    event_id: str | None = None,
    received_s: float | None = None,
    position: int | None = None,
    propensity: float | None = None,
    value: float | None = None,
) -> bytes:
    """Return a line of ctr-collect. The event is received when it happens, unless another time is given."""
    stored = StoredEvent(
        event_id=event_id or f"{kind}-{of}-{candidate}",
        type=kind,
        score_id=of,
        candidate=candidate,
        time=iso(time_s),
        received=iso(time_s if received_s is None else received_s),
        position=UNSET if position is None else position,
        propensity=UNSET if propensity is None else propensity,
        value=UNSET if value is None else value,
    )
    return msgspec.json.encode(stored)


def write_segment(folder: Path, kind: str, lines: Iterable[bytes], number: int = 0, ending: str = FINISHED) -> Path:
    """Write a segment, with a name as the service writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-20261130T200000.{number:06d}-1{ending}"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def write_logs(folder: Path, requests: Iterable[bytes], events: Iterable[bytes]) -> list[Path]:
    """Write one segment of each kind, and return both folders."""
    write_segment(folder / "log", REQUESTS, requests)
    write_segment(folder / "events", EVENTS, events)
    return [folder / "log", folder / "events"]
