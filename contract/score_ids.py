"""The id of an answer. Events refer to it, and it states when the answer was given and whether it was logged.

A score id is a UUIDv7 (RFC 9562): 48 bits of milliseconds since 1970, then random bits. The last bit is 1 if the
request was sampled for the request log.
"""

import re
import secrets

SCORE_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
RANDOM_BITS = 74
MAX_MS = 2**48 - 1


def new_score_id(time_s: float, logged: bool, random: int | None = None) -> str:
    """Return a new score id.

    Args:
        time_s: When the answer was given, in seconds since 1970.
        logged: Whether the request was sampled for the request log.
        random: The random bits. Tests and simulations set them to get the same ids every time.
    """
    if random is None:
        random = secrets.randbits(RANDOM_BITS)
    random = (random & ~1 | logged) & (2**RANDOM_BITS - 1)
    high, low = random >> 62, random & (2**62 - 1) | 2 << 62
    time_ms = int(time_s * 1000) & MAX_MS
    # Every answer needs an id, and uuid.UUID takes three times as long as this.
    last = low & (2**48 - 1)
    return f"{time_ms >> 16:08x}-{time_ms & 0xFFFF:04x}-7{high:03x}-{low >> 48:04x}-{last:012x}"


def is_score_id(text: str) -> bool:
    """Return whether a text has the form of a score id."""
    return SCORE_ID.fullmatch(text) is not None


def score_time_s(score_id: str) -> float:
    """Return when the answer was given, in seconds since 1970. The argument must be a score id."""
    return int(score_id[:8] + score_id[9:13], 16) / 1000


def is_logged(score_id: str) -> bool:
    """Return whether the request was sampled for the request log. The argument must be a score id."""
    return int(score_id[-1], 16) % 2 == 1
