"""A request's head: its limits, and itself without the wish for another protocol."""

from collections.abc import Sequence

LONGEST_HEAD_BYTES = 64 * 1024
MOST_HEADERS = 200
TOO_LARGE = (
    f"This server reads at most {MOST_HEADERS} headers and {LONGEST_HEAD_BYTES} bytes of them with the URL: send fewer"
)
HOP_BY_HOP = (b"upgrade", b"http2-settings")


class HeadTooLarge(Exception):
    pass


class Head:
    """Counts the bytes of a head, and of the trailers behind a body, complete or not.

    The parser joins the pieces of a header without end again and again, and says nothing meanwhile.
    """

    def __init__(self) -> None:
        self.is_open = False  # what comes are headers, and no trailers
        self._bytes = 0  # of the URL and the headers that are complete
        self._silent_bytes = 0  # since the parser last said anything

    @property
    def has_begun(self) -> bool:
        return self._bytes + self._silent_bytes > 0

    @property
    def is_endless(self) -> bool:
        return self._silent_bytes > LONGEST_HEAD_BYTES

    def begin(self) -> None:
        self.is_open = True
        self._bytes = self._silent_bytes = 0

    def feed(self, size: int) -> None:
        """These bytes go to the parser."""
        self._silent_bytes += size

    def hear(self) -> None:
        """The parser says something."""
        self._silent_bytes = 0

    def count(self, size: int, headers: int = 0) -> None:
        """A URL or a header of that size, behind so many headers. Raises HeadTooLarge."""
        self.hear()
        self._bytes += size
        if self._bytes > LONGEST_HEAD_BYTES or headers >= MOST_HEADERS:
            raise HeadTooLarge


def without_upgrade(method: bytes, url: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The whole head."""
    lines = [b"%b %b HTTP/%b\r\n" % (method, url, version.encode())]
    lines += [b"%b: %b\r\n" % header for header in headers if header[0] not in HOP_BY_HOP]
    return b"".join([*lines, b"\r\n"])
