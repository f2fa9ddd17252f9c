"""Send simulated traffic to a server and to ctr-collect over HTTP, as the backend of a website would."""

import asyncio
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import msgspec
import numpy as np

from model.data.synthetic.traffic import Requests, Traffic
from model.data.synthetic.traffic_events import Answers, SentEvent, show
from model.data.synthetic.traffic_truth import Truth

SCORE_TIMEOUT_MS = 5000
RETRY_S = 120.0  # how long a request is sent again before the traffic fails
RETRY_STATUSES = (429, 500, 502, 503, 504)
PAUSE_S = 0.1
MAX_PAUSE_S = 1.0  # between two attempts
MAX_IN_FLIGHT = 16  # requests; if all of them are waiting for a server, no more are started
MAX_EVENTS = 200  # in one body
JSON, NDJSON = "application/json", "application/x-ndjson"


class TrafficFailed(RuntimeError):
    """A server gave an unexpected answer, or none in time."""


@dataclass(frozen=True)
class Addresses:
    """The URLs of the servers."""

    service: str
    collect: str


@dataclass
class Outbox:
    """Events that are waiting to be sent.

    Attributes:
        end_s: Events that are due later than this are never sent. None while more events may come.
    """

    end_s: float | None = None
    _waiting: list[tuple[float, int, SentEvent]] = field(default_factory=list)
    _count: int = 0

    def add(self, sent: Sequence[SentEvent]) -> None:
        """Add events."""
        for event in sent:
            self._count += 1
            heapq.heappush(self._waiting, (event.send_s, self._count, event))

    def due(self, now_s: float) -> list[SentEvent]:
        """Remove and return the events that are due, at most MAX_EVENTS."""
        due: list[SentEvent] = []
        while self._waiting and self._waiting[0][0] <= now_s and len(due) < MAX_EVENTS:
            due.append(heapq.heappop(self._waiting)[2])
        return due

    def is_finished(self, now_s: float) -> bool:
        """Return whether all events have been sent that ever will be."""
        return self.end_s is not None and (not self._waiting or now_s >= self.end_s)


class Driver:
    """Sends requests at a steady rate, shows the answers to the simulated users, and sends their events.

    Attributes:
        truth: What happened. It contains the events that ctr-collect has acknowledged.
        retries: How many times a request was sent again.
    """

    def __init__(self, traffic: Traffic, addresses: Addresses) -> None:
        self.truth = Truth()
        self.retries = 0
        self._traffic = traffic
        self._addresses = addresses
        self._outbox = Outbox()

    async def run(self, requests: Requests, rate: float, linger_s: float, stop: asyncio.Event | None = None) -> None:
        """Send requests, and their events.

        Args:
            requests: The requests.
            rate: Requests per second, while fewer than MAX_IN_FLIGHT are waiting for an answer.
            linger_s: How long events are sent after the last answer. Later ones are dropped.
            stop: No more requests are sent once this is set. Default: all requests are sent.

        Raises:
            TrafficFailed: A server gave an unexpected answer, or none in time.
        """
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(timeout=10.0, limits=limits, trust_env=False) as client:
            sending = asyncio.create_task(self._send_events(client))
            scoring: set[asyncio.Task[None]] = set()
            try:
                start_s = time.monotonic()
                for row in range(len(requests)):
                    await asyncio.sleep(max(0.0, start_s + row / rate - time.monotonic()))
                    while len(scoring) >= MAX_IN_FLIGHT:
                        await asyncio.wait({*scoring, sending}, return_when=asyncio.FIRST_COMPLETED)
                        scoring = still_running(scoring, sending)
                    if stop is not None and stop.is_set():
                        break
                    scoring = still_running(scoring, sending)
                    scoring.add(asyncio.create_task(self._score(client, requests.at(row))))
                await asyncio.gather(*scoring)
                self._outbox.end_s = time.time() + linger_s
                await sending
            finally:
                for task in (*scoring, sending):
                    task.cancel()

    async def _score(self, client: httpx.AsyncClient, request: Requests) -> None:
        """Send a request, and add the events that its answer leads to."""
        content = msgspec.json.encode(request.bodies()[0] | {"timeout_ms": SCORE_TIMEOUT_MS})
        headers = {"content-type": JSON, "x-request-id": f"request-{request.number[0]}"}
        response = await self._post(client, f"{self._addresses.service}/v1/score", content, headers, 200)
        answer = response.json()
        ctr = np.full((1, request.logit.shape[1]), np.nan)
        for score in answer["scores"]:
            ctr[0, score["candidate"]] = score["ctr"]
        answers = Answers([answer["score_id"]], [answer["version"]], np.array([time.time()]), ctr)
        shown, sent = show(self._traffic, request, answers)
        self.truth.add(request, answers, shown, ())
        self._outbox.add(sent)

    async def _send_events(self, client: httpx.AsyncClient) -> None:
        """Send events when they are due, one body after the other, so that they arrive in order."""
        while not self._outbox.is_finished(time.time()):
            due = self._outbox.due(time.time())
            if not due:
                await asyncio.sleep(PAUSE_S)
                continue
            content = b"".join(msgspec.json.encode(event) + b"\n" for _, event, _ in due)
            url = f"{self._addresses.collect}/v1/events"
            response = await self._post(client, url, content, {"content-type": NDJSON}, 202)
            if invalid := response.json().get("invalid"):
                raise TrafficFailed(f"ctr-collect did not store these events: {invalid}")
            self.truth.sent += due

    async def _post(
        self, client: httpx.AsyncClient, url: str, content: bytes, headers: dict[str, str], expected: int
    ) -> httpx.Response:
        """Send a request until it is answered with the expected status.

        Raises:
            TrafficFailed: The answer has a status that sending again cannot change, or none came in time.
        """
        end_s, pause_s = time.monotonic() + RETRY_S, PAUSE_S
        while True:
            try:
                response = await client.post(url, content=content, headers=headers)
                if response.status_code == expected:
                    return response
                problem = f"{response.status_code}: {response.text[:500]}"
                if response.status_code not in RETRY_STATUSES:
                    raise TrafficFailed(f"{url} answered {problem}")
            except httpx.TransportError as error:
                problem = repr(error)
            if time.monotonic() > end_s:
                raise TrafficFailed(f"{url}: no success in {RETRY_S:g} s; the last failure was {problem}")
            self.retries += 1
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)


def still_running(scoring: "set[asyncio.Task[None]]", sending: "asyncio.Task[None]") -> "set[asyncio.Task[None]]":
    """Return the unfinished tasks. If a task or the sending of events failed, raise its exception."""
    for task in (*scoring, sending):
        if task.done():
            task.result()
    return {task for task in scoring if not task.done()}
