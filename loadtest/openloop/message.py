"""HTTP/1.1 requests as bytes."""

import msgspec


class Prepared(msgspec.Struct, frozen=True):
    """A request that is ready to be sent.

    Args:
        message: HTTP head and body.
        ids: The candidates' ids, in order.
        expected: Version that may answer -> the probability of each candidate.
    """

    message: bytes
    ids: list[str | int]
    expected: dict[str, list[float]] = {}

    @property
    def body(self) -> bytes:
        return self.message.partition(b"\r\n\r\n")[2]


def message(
    body: bytes, path: str = "/v1/score", content_type: str = "application/json", method: str = "POST"
) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: ctr", f"Content-Type: {content_type}", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body
