"""An in-process cache of token ids.

The cache has two generations, young and old. When the young generation is full, it becomes the old one and the previous
old one is dropped. A token that is requested again moves from the old generation to the young one. Tokens in use
therefore stay, and most lookups read a single dictionary.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from contract.vocabulary import UNKNOWN

# Bytes of an entry without its characters: the dictionary slot with its spare capacity, the id, and the string header.
ENTRY_BYTES = 112
# Share of the cache for unknown tokens, so that a flood of unknown tokens cannot evict known ones.
UNKNOWN_SHARE = 0.1

Ids = dict[str, dict[str, int]]  # field -> token -> id


class TokenCache:
    """A cache of token ids, bounded in tokens and in bytes over all fields. Use it from one event loop only.

    Args:
        fields: Names of the categorical fields.
        max_tokens: Maximum number of tokens.
        max_bytes: Maximum size in bytes, estimated.
        unknown_s: Maximum time for which an unknown token is cached. If it is 0, unknown tokens are not cached.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        fields: Iterable[str],
        max_tokens: int,
        max_bytes: int,
        unknown_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        names = tuple(fields)
        self._known = Generations(names, max_tokens * (1 - UNKNOWN_SHARE), max_bytes * (1 - UNKNOWN_SHARE))
        self._unknown = Generations(names, max_tokens * UNKNOWN_SHARE, max_bytes * UNKNOWN_SHARE)
        self._unknown_s = unknown_s
        self._clock = clock
        self._rotated_s = clock()

    @property
    def tokens(self) -> int:
        """Number of cached tokens."""
        return self._known.tokens + self._unknown.tokens

    @property
    def bytes(self) -> int:
        """Estimated size in bytes. The actual size is between two thirds and one and a half times this."""
        return self._known.bytes + self._unknown.bytes

    @property
    def known(self) -> Mapping[str, Mapping[str, int]]:
        """Ids of recently requested known tokens, by field.

        This is the young generation only, so some cached tokens are not in it. It is valid until the next `put`.
        """
        return self._known.young

    def split(self, wanted: Mapping[str, Sequence[str]]) -> tuple[Ids, dict[str, list[str]]]:
        """Return the cached ids, and the tokens that are not cached, both by field."""
        self._expire_unknown()
        ids: Ids = {}
        misses: dict[str, list[str]] = {}
        for field, tokens in wanted.items():
            young = self._known.young[field]
            found: dict[str, int] = {}
            missing = []
            for token in tokens:
                known = young.get(token)
                if known is None:
                    known = self._find_outside_young(field, token)
                if known is None:
                    missing.append(token)
                else:
                    found[token] = known
            ids[field] = found
            if missing:
                misses[field] = missing
        return ids, misses

    def put(self, field: str, ids: Mapping[str, int]) -> None:
        """Add the ids of a field's tokens. `UNKNOWN` is an id like any other."""
        for token, known in ids.items():
            if known != UNKNOWN:
                self._known.put(field, token, known)
            elif self._unknown_s:
                self._unknown.put(field, token, UNKNOWN)

    def _find_outside_young(self, field: str, token: str) -> int | None:
        known = self._known.promote(field, token)
        return self._unknown.young[field].get(token, self._unknown.old[field].get(token)) if known is None else known

    def _expire_unknown(self) -> None:
        # A generation of unknown tokens accepts new tokens for half of `unknown_s` and is kept for another half.
        if not self._unknown_s:
            return
        half_s = self._unknown_s / 2
        over = int((self._clock() - self._rotated_s) // half_s)
        self._rotated_s += over * half_s
        for _ in range(min(over, 2)):  # two rotations already empty both generations
            self._unknown.rotate()


class Generations:
    """The young and the old generation of a cache, each with half of the capacity."""

    def __init__(self, fields: tuple[str, ...], max_tokens: float, max_bytes: float) -> None:
        self._fields = fields
        self._max_tokens = int(max_tokens / 2)
        self._max_bytes = int(max_bytes / 2)
        self.young: Ids = {field: {} for field in fields}
        self.old: Ids = {field: {} for field in fields}
        self._tokens = self._bytes = self._old_tokens = self._old_bytes = 0

    @property
    def tokens(self) -> int:
        return self._tokens + self._old_tokens

    @property
    def bytes(self) -> int:
        return self._bytes + self._old_bytes

    def promote(self, field: str, token: str) -> int | None:
        """Move a token from the old generation to the young one. Return its id, or None if it is not in the old one."""
        known = self.old[field].pop(token, None)
        if known is not None:
            self._old_tokens -= 1
            self._old_bytes -= entry_bytes(token)
            self.put(field, token, known)
        return known

    def put(self, field: str, token: str, known: int) -> None:
        """Add a token to the young generation. A token that is larger than a whole generation is not cached."""
        size = entry_bytes(token)
        if size > self._max_bytes or not self._max_tokens or token in self.young[field]:
            return
        if self._tokens >= self._max_tokens or self._bytes + size > self._max_bytes:
            self.rotate()
        self.young[field][token] = known
        self._tokens += 1
        self._bytes += size

    def rotate(self) -> None:
        """Make the young generation the old one, and drop the previous old one."""
        self.old, self.young = self.young, {field: {} for field in self._fields}
        self._old_tokens, self._old_bytes = self._tokens, self._bytes
        self._tokens = self._bytes = 0


def entry_bytes(token: str) -> int:
    """Return the estimated size of a cached token in bytes."""
    # Not sys.getsizeof: its result grows once the string's UTF-8 form is cached, so the amount subtracted at eviction
    # would differ from the amount that was added.
    return ENTRY_BYTES + (len(token) if token.isascii() else len(token.encode("utf-8", "surrogatepass")))
