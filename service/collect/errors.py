"""The outcomes of a request that only ctr-collect has. service/errors.py has the others."""

from collections.abc import Sequence
from typing import ClassVar

from service.collect.events import InvalidEvent
from service.errors import Problem


class NoValidEvent(Problem):
    """No event of the request is valid, so nothing was stored."""

    status, outcome, title = 400, "no_valid_event", "The request has no valid event"

    def __init__(self, invalid: Sequence[InvalidEvent]) -> None:
        first = invalid[0]
        super().__init__(f"No event was stored. Event {first.position}: {first.reason}")
        self.invalid = invalid


class StorageFull(Problem):
    """The events cannot be written to the disk. None of the request's events counts as stored."""

    status, outcome, title = 503, "storage_full", "The events cannot be stored"
    retry_after_s: ClassVar[int] = 5

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_s)}
