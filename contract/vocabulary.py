"""Token -> id of one field, memory-mapped: opening costs no time, and processes share the pages."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import marisa_trie
import numpy as np
from numpy.typing import NDArray

UNKNOWN = 0
MISSING = 1
FIRST = 2  # the id of the most frequent token
NUL = "\0"
AGAIN = ": write it again, with ctr-prepare and ctr-export"


class Vocabulary:
    """Ids 0 (unknown) and 1 (missing) always exist; tokens follow from 2 on, the most frequent first."""

    def __init__(self, trie: marisa_trie.Trie, ids: NDArray[np.int32]) -> None:
        if ids.dtype != np.int32 or ids.shape != (len(trie),):
            raise ValueError(f"{len(trie)} tokens but ids {ids.dtype}{list(ids.shape)}{AGAIN}")
        self._trie = trie
        # A memoryview reads one element as a Python int about three times as fast as an array does.
        self._ids = memoryview(np.asarray(ids))  # type: ignore[arg-type]  # mypy does not see numpy's buffers

    def __len__(self) -> int:
        """Rows of an embedding table: the tokens, unknown and missing."""
        return len(self._trie) + FIRST

    def __call__(self, token: str) -> int:
        """The token's id, or 0."""
        if NUL in token:  # marisa ends a key there, and would find the part before it
            return UNKNOWN
        try:
            index = self._trie.get(token)
        except UnicodeEncodeError:  # a lone surrogate: no token has one
            return UNKNOWN
        return UNKNOWN if index is None else self._ids[index]

    def items(self) -> Iterator[tuple[str, int]]:
        """Every (token, id), in no stated order."""
        for token, index in self._trie.items():
            yield token, self._ids[index]

    def save(self, folder: Path, name: str) -> None:
        self._trie.save(str(folder / f"{name}.marisa"))
        np.save(folder / f"{name}.ids.npy", np.asarray(self._ids))


def build_vocabulary(tokens: Iterable[str]) -> Vocabulary:
    """From distinct tokens, the most frequent first.

    Raises:
        ValueError: for a token that is there twice, and for one with a NUL character.
    """
    ranked = list(tokens)
    for token in ranked:
        if NUL in token:
            raise ValueError(f"token {token!r} holds a NUL character: remove it from the log")
    trie = marisa_trie.Trie(ranked)
    if len(trie) != len(ranked):
        raise ValueError(f"{len(ranked) - len(trie)} tokens appear twice: count distinct tokens first")
    ids = np.empty(len(ranked), np.int32)
    for rank, token in enumerate(ranked):
        ids[trie[token]] = rank + FIRST
    return Vocabulary(trie, ids)


def open_vocabulary(folder: Path, name: str) -> Vocabulary:
    """Raises ValueError naming the field when its two files do not belong together."""
    try:
        trie = marisa_trie.Trie().mmap(str(folder / f"{name}.marisa"))
        # Not np.load: it would take a zip archive as well, of any size.
        ids = np.lib.format.open_memmap(folder / f"{name}.ids.npy", mode="r")
        vocabulary = Vocabulary(trie, ids)
        if len(ids) and not FIRST <= ids.min() <= ids.max() < len(vocabulary):
            raise ValueError(f"ids from {ids.min()} to {ids.max()}, they must be {FIRST} to {len(vocabulary) - 1}")
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        reason = str(error).removesuffix(AGAIN)
        raise ValueError(f"vocabulary of field {name!r}: {reason}{AGAIN}") from error
    return vocabulary
