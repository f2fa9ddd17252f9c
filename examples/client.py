"""Score ad candidates from Python, with a deadline, retries and connection reuse.

    make serve                                             # in another terminal
    python examples/client.py http://127.0.0.1:8000

Requires httpx. Copy the class into your ad server and adapt the error handling.
"""

import sys
import time
from types import TracebackType
from typing import Any, Self

import httpx

RETRIED = {429, 503}  # overloaded or shutting down: the same request can succeed a moment later
MAX_PAUSE_S = 0.005  # before a retry after the server closed the connection


class ScoringClient:
    """A client for POST /v1/score. It keeps connections open and is thread-safe, so use one client per process.

    Args:
        url: The server, for example "http://127.0.0.1:8000".
        budget_s: Maximum duration of a call to `score`, including retries.
        api_key: Sent as a bearer token. Omit it if the server has no CTR_API_KEYS_FILE.
    """

    def __init__(self, url: str, budget_s: float = 0.05, api_key: str | None = None) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_keepalive_connections=32, keepalive_expiry=60)  # the server keeps them for 75 s
        self._http = httpx.Client(base_url=url, headers=headers, limits=limits)
        self._budget_s = budget_s

    def score(self, context: dict[str, Any], candidates: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the response of POST /v1/score: `scores` in the order of the candidates, and `degraded`.

        If the server answers with 429 or 503, the request is sent again after `Retry-After`, if the budget allows it.
        If the server has just closed the connection, the request is retried once on a new one.

        Raises:
            TimeoutError: The budget is exhausted. Fall back to your default ranking.
            httpx.HTTPStatusError: The server refused the request for another reason. The message contains the details.
            httpx.TransportError: The server cannot be reached.
        """
        deadline_s = time.monotonic() + self._budget_s
        body = {"context": context, "candidates": candidates, "timeout_ms": 1}
        retried_connection = False
        while (left_s := deadline_s - time.monotonic()) > 0.001:
            # Send the remaining time, because the server drops a request whose deadline has passed.
            body["timeout_ms"] = max(1, int(left_s * 1000))
            try:
                response = self._http.post("/v1/score", json=body, timeout=left_s)
            except httpx.TimeoutException as error:
                raise TimeoutError(f"no answer within {self._budget_s * 1000:g} ms") from error
            except httpx.RemoteProtocolError:  # the server closed an idle connection while the request was being sent
                if retried_connection:
                    raise
                retried_connection = True
                continue
            if response.status_code not in RETRIED:
                return self._answer(response)
            time.sleep(min(float(response.headers.get("retry-after", MAX_PAUSE_S)), max(0.0, left_s)))
        raise TimeoutError(f"no answer within {self._budget_s * 1000:g} ms")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _answer(response: httpx.Response) -> dict[str, Any]:
        if response.status_code == httpx.codes.GATEWAY_TIMEOUT:
            raise TimeoutError(response.json()["detail"])
        if response.is_error:
            problem = response.json()
            message = f"{problem['status']} {problem['title']}: {problem.get('path', '')} {problem['detail']}"
            raise httpx.HTTPStatusError(message, request=response.request, response=response)
        answer: dict[str, Any] = response.json()
        return answer


def main() -> None:
    context = {"user": "u17", "country": "spain", "device": "phone", "hour": 21, "session_depth": 3}
    candidates = [
        {"id": f"ad-{number}", "features": {"ad": f"ad-{number}", "format": "video", "bid": 1.2}} for number in range(5)
    ]
    with ScoringClient(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000", budget_s=1.0) as client:
        answer = client.score(context, candidates)
    for score in sorted(answer["scores"], key=lambda score: score["ctr"], reverse=True):
        print(f"{score['id']}: {score['ctr']:.4f}")
    if answer["degraded"]:
        print(f"degraded: {', '.join(answer['degraded'])}", file=sys.stderr)


if __name__ == "__main__":
    main()
