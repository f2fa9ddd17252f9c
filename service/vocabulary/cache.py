"""Token -> id in memory, of one process: the tokens that requests have asked for lately.

Two generations: when the young one is full it becomes the old one, and the old one is forgotten; a token that is asked
for again moves from the old one to the young. So what is used stays, and finding it costs a look into one dictionary.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from contract.vocabulary import UNKNOWN

ENTRY_BYTES = 112  # of a dictionary's slot, with room to grow, of the id, and of a string without its characters
UNKNOWN_SHARE = 0.1  # of the cache: a flood of tokens that nobody knows must not push out the known ones

Ids = dict[str, dict[str, int]]  # by field


class TokenCache:
    """Bounded in tokens and in bytes, over all fields together. Lives in one event loop.

    unknown_s: how long a token is remembered as unknown, at most.
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
        self._known = _Generations(names, max_tokens * (1 - UNKNOWN_SHARE), max_bytes * (1 - UNKNOWN_SHARE))
        self._unknown = _Generations(names, max_tokens * UNKNOWN_SHARE, max_bytes * UNKNOWN_SHARE)
        self._unknown_s = unknown_s
        self._clock = clock
        self._turn_s = clock()

    @property
    def tokens(self) -> int:
        return self._known.tokens + self._unknown.tokens

    @property
    def bytes(self) -> int:
        """About; half as much again, at most, or a third less."""
        return self._known.bytes + self._unknown.bytes

    @property
    def known(self) -> Mapping[str, Mapping[str, int]]:
        """By field the ids of known tokens that were asked for lately: not all that are here, but the quickest to find.
        Good until the next put()."""
        return self._known.young

    def split(self, wanted: Mapping[str, Sequence[str]]) -> tuple[Ids, dict[str, list[str]]]:
        """The ids that are here, and by field the tokens that are not."""
        self._age()
        ids: Ids = {}
        misses: dict[str, list[str]] = {}
        for field, tokens in wanted.items():
            young = self._known.young[field]
            found: dict[str, int] = {}
            missing = []
            for token in tokens:
                known = young.get(token)
                if known is None:
                    known = self._elsewhere(field, token)
                if known is None:
                    missing.append(token)
                else:
                    found[token] = known
            ids[field] = found
            if missing:
                misses[field] = missing
        return ids, misses

    def put(self, field: str, ids: Mapping[str, int]) -> None:
        for token, known in ids.items():
            if known != UNKNOWN:
                self._known.put(field, token, known)
            elif self._unknown_s:
                self._unknown.put(field, token, UNKNOWN)

    def _elsewhere(self, field: str, token: str) -> int | None:
        known = self._known.again(field, token)
        return self._unknown.young[field].get(token, self._unknown.old[field].get(token)) if known is None else known

    def _age(self) -> None:
        """A generation of unknown ones takes new tokens for half of unknown_s, and is kept for another half."""
        if not self._unknown_s:
            return
        half_s = self._unknown_s / 2
        over = int((self._clock() - self._turn_s) // half_s)
        self._turn_s += over * half_s
        for _ in range(min(over, 2)):  # after two halves nothing is young enough
            self._unknown.turn()


class _Generations:
    def __init__(self, fields: tuple[str, ...], max_tokens: float, max_bytes: float) -> None:
        self._fields = fields
        # Half of it: there are two of them.
        self._most_tokens = int(max_tokens / 2)
        self._most_bytes = int(max_bytes / 2)
        self.young: Ids = {field: {} for field in fields}
        self.old: Ids = {field: {} for field in fields}
        self._tokens = self._bytes = self._old_tokens = self._old_bytes = 0

    @property
    def tokens(self) -> int:
        return self._tokens + self._old_tokens

    @property
    def bytes(self) -> int:
        return self._bytes + self._old_bytes

    def again(self, field: str, token: str) -> int | None:
        """Moves it from the old ones to the young."""
        known = self.old[field].pop(token, None)
        if known is not None:
            self._old_tokens -= 1
            self._old_bytes -= _bytes(token)
            self.put(field, token, known)
        return known

    def put(self, field: str, token: str, known: int) -> None:
        size = _bytes(token)
        if size > self._most_bytes or not self._most_tokens or token in self.young[field]:
            return
        if self._tokens >= self._most_tokens or self._bytes + size > self._most_bytes:
            self.turn()
        self.young[field][token] = known
        self._tokens += 1
        self._bytes += size

    def turn(self) -> None:
        self.old, self.young = self.young, {field: {} for field in self._fields}
        self._old_tokens, self._old_bytes = self._tokens, self._bytes
        self._tokens = self._bytes = 0


def _bytes(token: str) -> int:
    # Not sys.getsizeof: that grows when somebody asks for the string's UTF-8, and what is added is taken off again.
    return ENTRY_BYTES + (len(token) if token.isascii() else len(token.encode("utf-8", "surrogatepass")))
