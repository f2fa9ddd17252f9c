"""Limit the size of a request's head (URL and headers), and remove the headers that request another protocol."""

from collections.abc import Sequence

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
HEAD_TOO_LARGE = (
    f"The URL and headers exceed {MAX_HEAD_BYTES:,} bytes, or there are more than {MAX_HEADERS} headers. Send less."
)
UPGRADE_HEADERS = (b"upgrade", b"http2-settings")


class HeadTooLarge(Exception):
    """The head exceeds MAX_HEAD_BYTES or MAX_HEADERS."""


class HeadSize:
    """Counts the bytes of a head, and of the trailers after a chunked body, as they arrive.

    httptools calls back only when a URL or header is complete. Until then it concatenates the pieces on each read,
    so bytes that have not yet caused a callback are counted as well.

    Attributes:
        in_headers: True until the head is complete. Header callbacks after that are for trailers.
    """

    def __init__(self) -> None:
        self.in_headers = False
        self._parsed_bytes = 0
        self._pending_bytes = 0

    @property
    def has_begun(self) -> bool:
        return self._parsed_bytes + self._pending_bytes > 0

    @property
    def has_endless_line(self) -> bool:
        """Whether the parser has read more than MAX_HEAD_BYTES without completing a URL or header."""
        return self._pending_bytes > MAX_HEAD_BYTES

    def begin(self) -> None:
        """Start counting a new head."""
        self.in_headers = True
        self._parsed_bytes = self._pending_bytes = 0

    def add_fed(self, size: int) -> None:
        """Count bytes that are about to be given to the parser."""
        self._pending_bytes += size

    def mark_progress(self) -> None:
        """Record that the parser has completed a part of the request."""
        self._pending_bytes = 0

    def add_parsed(self, size: int, headers: int = 0) -> None:
        """Count a complete URL or header.

        Args:
            size: The size of the URL or header in bytes.
            headers: The number of headers before it.

        Raises:
            HeadTooLarge: The head exceeds a limit.
        """
        self.mark_progress()
        self._parsed_bytes += size
        if self._parsed_bytes > MAX_HEAD_BYTES or headers >= MAX_HEADERS:
            raise HeadTooLarge


def head_without_upgrade(method: bytes, url: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the head as bytes, without UPGRADE_HEADERS."""
    lines = [b"%b %b HTTP/%b\r\n" % (method, url, version.encode())]
    lines += [b"%b: %b\r\n" % header for header in headers if header[0] not in UPGRADE_HEADERS]
    return b"".join([*lines, b"\r\n"])
