"""Read events from a Redis stream, as one consumer of a group.

An entry has a field `event` with the same text as the body of POST /v1/events. It is acknowledged when its events are
on the disk, so a crash makes Redis deliver it again, and never loses it. ctr-join removes the duplicates.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from service.collect.errors import StorageFull
from service.collect.events import CheckedEvents, InvalidEvent, Limits, check_events
from service.collect.group_commit import GroupCommit
from service.collect.metrics import STORED, CollectMetrics
from service.collect.settings import CollectSettings
from service.errors import Problem
from service.settings import COLLECT_PREFIX, SettingsError
from service.telemetry.json_logging import fields
from service.vocabulary.redis_client import check_redis_url, connect

log = logging.getLogger(__name__)

EVENT_FIELD = b"event"
MAX_ENTRIES = 100
BLOCK_MS = 500
TIMEOUT_S = 5.0
STOP_S = 2.0  # longer than BLOCK_MS
MEASURE_S = 5.0
MIN_PAUSE_S, MAX_PAUSE_S = 0.2, 5.0
NO_GROUP = "NOGROUP"
MAX_KEPT_CHARS = 64 * 1024  # of an invalid entry

Entry = tuple[bytes, dict[bytes, bytes] | None]


class InvalidEntry(msgspec.Struct):
    """A line of the files in the subfolder `invalid`.

    Attributes:
        received: When the entry was checked, in seconds since 1970.
        stream: The name of the stream.
        entry: The id of the entry.
        event: The field `event`, or an empty string. Bytes that are not UTF-8 appear as escapes such as \\xff.
        invalid: What is wrong with which of its events.
    """

    received: float
    stream: str
    entry: str
    event: str
    invalid: list[InvalidEvent]


@dataclass
class Batch:
    """Entries, and what to write for them."""

    ids: list[bytes] = field(default_factory=list)
    events: list[CheckedEvents] = field(default_factory=list)
    invalid: list[InvalidEntry] = field(default_factory=list)


class StreamReader:
    """Reads the stream until it is stopped. Redis may be down or slow for any time."""

    def __init__(
        self, settings: CollectSettings, commit: GroupCommit, metrics: CollectMetrics, clock: Callable[[], float]
    ) -> None:
        """Prepare a client, which connects later.

        Raises:
            SettingsError: The URL is invalid.
        """
        assert settings.redis_url is not None
        url = settings.redis_url.get_secret_value()
        try:
            check_redis_url(url)
        except ValueError as error:
            raise SettingsError(f"{COLLECT_PREFIX}REDIS_URL: {error}.") from error
        self._settings = settings
        self._limits = Limits(settings.max_events, settings.max_skew_s)
        self._stream, self._group = settings.redis_stream, settings.redis_group
        # The name is the same after a restart, so that restarts do not add consumers to the group.
        self._consumer = f"{socket.gethostname()}-{settings.port}"
        self._commit = commit
        self._metrics = metrics
        self._clock = clock
        self._redis: Any = connect(url, TIMEOUT_S, max_connections=2)
        self._stopping = False
        self._is_up = True
        self._claim_from: bytes | str = "0-0"
        self._next_claim_s = 0.0
        self._next_measure_s = 0.0

    async def run(self) -> None:
        """Read until stop() is called. After an error, pause and connect again."""
        pause_s = MIN_PAUSE_S
        while not self._stopping:
            try:
                await self._create_group()
                while not self._stopping:
                    await self._read_once()
                    pause_s = MIN_PAUSE_S
                    self._set_up(True)
            except Exception as error:  # Whatever it is, the entries stay in the stream, and are read again.
                if not str(error).startswith(NO_GROUP):  # Otherwise, the stream was deleted: create it again.
                    self._set_up(False, error)
                await asyncio.sleep(pause_s)
                pause_s = min(MAX_PAUSE_S, pause_s * 2)

    async def stop(self, running: "asyncio.Task[None]") -> None:
        """Let run() acknowledge the current entries, and stop it. Redis delivers entries that are left again."""
        self._stopping = True
        await asyncio.wait([running], timeout=STOP_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await self._redis.aclose()

    async def _create_group(self) -> None:
        """Create the stream and the group, unless they exist. The group begins with the stream's first entry."""
        try:
            await self._redis.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _read_once(self) -> None:
        """Store and acknowledge some entries: those that another consumer has left unacknowledged, or new ones."""
        now = time.monotonic()
        if now >= self._next_measure_s:
            await self._measure()
            self._next_measure_s = now + MEASURE_S
        if now >= self._next_claim_s:
            entries = await self._claim()
        else:
            streams = await self._redis.xreadgroup(
                self._group, self._consumer, {self._stream: ">"}, count=MAX_ENTRIES, block=BLOCK_MS
            )
            entries = [entry for _, found in streams or () for entry in found]
        if entries:
            await self._store(entries)

    async def _claim(self) -> Sequence[Entry]:
        """Take over entries that were read long ago. After the last of them, wait before looking for more."""
        reclaim_s = self._settings.redis_reclaim_s
        reply = await self._redis.xautoclaim(
            self._stream, self._group, self._consumer, int(reclaim_s * 1000), self._claim_from, count=MAX_ENTRIES
        )
        self._claim_from, entries = reply[0], reply[1]
        if self._claim_from == b"0-0":
            self._next_claim_s = time.monotonic() + reclaim_s / 2
        deleted = reply[2] if len(reply) > 2 else []
        if deleted:
            log.error(
                "%d entries were deleted from the stream %s before they were stored. Trim only acknowledged entries.",
                len(deleted),
                self._stream,
            )
        found: Sequence[Entry] = entries
        return found

    async def _store(self, entries: Sequence[Entry]) -> None:
        """Store the events of entries, however long the disk is full, and acknowledge the entries."""
        while True:
            # Check the entries before each attempt, because ctr-join expects events on the disk soon after `received`.
            batch = Batch()
            for entry_id, members in entries:
                self._add(batch, entry_id, members)
            lines = b"".join(checked.lines for checked in batch.events)
            invalid = msgspec.json.Encoder().encode_lines(batch.invalid)
            try:
                if lines or invalid:
                    await self._commit.store(lines, invalid)
                break
            except StorageFull:
                if self._stopping:
                    return
                await asyncio.sleep(StorageFull.retry_after_s / 5)
        for checked in batch.events:
            self._metrics.count_events(checked, STORED)
        for entry in batch.invalid:
            log.warning(
                "The entry %s of the stream %s has invalid events",
                entry.entry,
                self._stream,
                extra=fields(reason=entry.invalid[0].reason, count=len(entry.invalid)),
            )
        await self._redis.xack(self._stream, self._group, *batch.ids)
        if self._settings.redis_delete:
            await self._redis.xdel(self._stream, *batch.ids)
        self._metrics.redis_entries.inc(len(batch.ids))

    def _add(self, batch: Batch, entry_id: bytes, members: dict[bytes, bytes] | None) -> None:
        """Add an entry to a batch. `members` is None if the entry was deleted from the stream."""
        batch.ids.append(entry_id)
        text = (members or {}).get(EVENT_FIELD, b"")
        now_s = self._clock()
        try:
            if len(text) > self._settings.max_body_bytes:
                raise ValueError(
                    f"the entry has {len(text)} bytes; at most {self._settings.max_body_bytes} are allowed"
                )
            checked = check_events(text, now_s, None, self._limits)
        except Problem as problem:
            checked = CheckedEvents(invalid=[InvalidEvent(0, problem.detail)])
        except ValueError as error:
            checked = CheckedEvents(invalid=[InvalidEvent(0, str(error))])
        batch.events.append(checked)
        if checked.invalid:
            kept = text[:MAX_KEPT_CHARS].decode("utf-8", "backslashreplace")
            batch.invalid.append(InvalidEntry(now_s, self._stream, entry_id.decode(), kept, checked.invalid))

    async def _measure(self) -> None:
        """Record how many entries wait in the stream."""
        for group in await self._redis.xinfo_groups(self._stream):
            if group["name"] == self._group.encode():
                self._metrics.redis_pending.set(group["pending"])
                # None if entries were deleted from the middle of the stream. Redis before version 7 does not send it.
                if group.get("lag") is not None:
                    self._metrics.redis_unread.set(group["lag"])

    def _set_up(self, is_up: bool, error: Exception | None = None) -> None:
        """Record whether the stream is being read, and log each change."""
        was_up = self._is_up
        self._is_up = is_up
        self._metrics.redis_up.set(is_up)
        if was_up and not is_up:
            log.error("The Redis stream cannot be read: %s. Trying again.", type(error).__name__, exc_info=error)
        elif is_up and not was_up:
            log.info("The Redis stream is being read again")
