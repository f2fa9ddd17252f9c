"""The id of an answer. Events refer to it, and it contains the time of the answer and whether it was logged.

The server makes the id when it has decoded the request, so its time is a little earlier than that of the log line.

A score id is a UUIDv7 (RFC 9562): 48 bits of milliseconds since 1970, then random bits. The last bit is 1 if the
request was sampled for the request log.
"""

import os
import re

SCORE_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
RANDOM_BITS = 74
MAX_MS = 2**48 - 1


def new_score_id(time_s: float, logged: bool, random: int | None = None) -> str:
    """Return a new score id.

    Args:
        time_s: When the id is made, in seconds since 1970.
        logged: Whether the request was sampled for the request log.
        random: The random bits. Tests and simulations set them to get the same ids every time.
    """
    if random is None:
        random = int.from_bytes(os.urandom(10), "big")
    random = (random & ~1 | logged) & (2**RANDOM_BITS - 1)
    high, low = random >> 62, random & (2**62 - 1)
    value = (int(time_s * 1000) & MAX_MS) << 80 | 7 << 76 | high << 64 | 2 << 62 | low
    # Every answer needs an id, and str(uuid.UUID(int=value)) takes twice as long.
    text = value.to_bytes(16, "big").hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_score_id(text: str) -> bool:
    """Return whether a text has the form of a score id."""
    return SCORE_ID.fullmatch(text) is not None


def score_time_s(score_id: str) -> float:
    """Return when a score id was made, in seconds since 1970. The argument must be a score id."""
    return int(score_id[:8] + score_id[9:13], 16) / 1000


def is_logged(score_id: str) -> bool:
    """Return whether the request was sampled for the request log. The argument must be a score id."""
    return int(score_id[-1], 16) % 2 == 1
