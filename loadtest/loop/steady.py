"""Requests to a server without pause, to see that no request fails while it loads new versions."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import httpx
import msgspec

from model.data.synthetic.traffic import Requests

TIMEOUT_S = 5.0
MAX_EXAMPLES = 5


class Steady:
    """Sends the same requests again and again from one thread, while the block runs.

    Attributes:
        answers: The number of answers by version.
        failed: The number of requests without a complete answer.
        examples: What the first of them got instead.
    """

    def __init__(self, url: str, requests: Requests, rate: float) -> None:
        """Prepare the requests.

        Args:
            url: The address of the server.
            requests: The requests.
            rate: Requests per second.
        """
        self.answers: Counter[str] = Counter()
        self.failed = 0
        self.examples: list[str] = []
        self._url = f"{url}/v1/score"
        self._bodies = [msgspec.json.encode(body | {"timeout_ms": 1000 * TIMEOUT_S}) for body in requests.bodies()]
        self._candidates = requests.logit.shape[1]
        self._pause_s = 1 / rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, args=(self._bodies,), daemon=True)

    def __enter__(self) -> "Steady":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, version: str, timeout_s: float) -> float | None:
        """Wait until a version has answered. Return the seconds that it took, or None after the timeout."""
        start_s = time.monotonic()
        while time.monotonic() < start_s + timeout_s:
            if self.answers[version]:
                return time.monotonic() - start_s
            time.sleep(self._pause_s)
        return None

    def _send(self, bodies: Sequence[bytes]) -> None:
        """Send requests until the block ends."""
        start_s, number = time.monotonic(), 0
        with httpx.Client(timeout=2 * TIMEOUT_S, trust_env=False) as client:
            while not self._stop.wait(max(0.0, start_s + number * self._pause_s - time.monotonic())):
                self._send_one(client, bodies[number % len(bodies)])
                number += 1

    def _send_one(self, client: httpx.Client, body: bytes) -> None:
        """Send a request, and count its answer. A failed request is not sent again."""
        try:
            response = client.post(self._url, content=body, headers={"content-type": "application/json"})
            answer = response.json() if response.status_code == 200 else {}
            is_complete = len(answer.get("scores", ())) == self._candidates
            problem = "" if is_complete else f"{response.status_code} {response.text}"
        except (httpx.HTTPError, ValueError) as error:
            problem = repr(error)
        if problem:
            self.failed += 1
            self.examples += [problem[:200]] if len(self.examples) < MAX_EXAMPLES else []
        else:
            self.answers[answer["version"]] += 1
