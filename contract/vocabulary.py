"""The vocabulary of one field. It is memory-mapped, so it opens instantly, and processes share its pages."""

from collections.abc import Iterable, Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

import marisa_trie
import numpy as np
from numpy.typing import NDArray

from contract.system_errors import OUT_OF_RESOURCES

UNKNOWN = 0
MISSING = 1
FIRST = 2  # the id of the most frequent token
NUL = "\0"
HOW_TO_FIX = ": create it again with ctr-prepare and ctr-export"


class Vocabulary:
    """The ids of a field's tokens.

    Ids 0 (unknown) and 1 (missing) always exist. The most frequent token has id 2, and the others follow by frequency.
    """

    def __init__(self, trie: marisa_trie.Trie, ids: NDArray[np.int32]) -> None:
        if ids.dtype != np.int32 or ids.shape != (len(trie),):
            raise ValueError(
                f"found {len(trie)} tokens, but the ids are {ids.dtype}{list(ids.shape)}; "
                f"expected one int32 id per token{HOW_TO_FIX}"
            )
        self._trie = trie
        # Reading one element as a Python int is about three times faster from a memoryview than from an array.
        self._ids = memoryview(np.asarray(ids))  # type: ignore[arg-type]  # mypy does not know numpy's buffers.

    def __len__(self) -> int:
        """Return the number of rows of an embedding table: one for each token, one for unknown and one for missing."""
        return len(self._trie) + FIRST

    def __call__(self, token: str) -> int:
        """Return the token's id, or 0 if it is unknown."""
        if NUL in token:  # marisa truncates a key at NUL, so it would look up only the part before it.
            return UNKNOWN
        try:
            index = self._trie.get(token)
        except UnicodeEncodeError:  # No token contains a lone surrogate.
            return UNKNOWN
        return UNKNOWN if index is None else self._ids[index]

    def items(self) -> Iterator[tuple[str, int]]:
        """Yield each (token, id), in no particular order."""
        for token, index in self._trie.items():
            yield token, self._ids[index]

    def tokens_of(self, ids: NDArray[np.int32]) -> list[str]:
        """Return the tokens of ids, all of which are at least FIRST. Shape: (n) -> n strings."""
        found = np.asarray(self._ids)
        index = np.empty(len(found), np.int32)
        index[found - FIRST] = np.arange(len(found), dtype=np.int32)
        return [self._trie.restore_key(place) for place in index[ids - FIRST].tolist()]

    def save(self, folder: Path, name: str) -> None:
        """Write the vocabulary of the field `name` as two files, <name>.marisa and <name>.ids.npy."""
        self._trie.save(str(folder / f"{name}.marisa"))
        np.save(folder / f"{name}.ids.npy", np.asarray(self._ids))


def build_vocabulary(tokens: Iterable[str]) -> Vocabulary:
    """Return a vocabulary of distinct tokens.

    Args:
        tokens: The tokens, most frequent first.

    Raises:
        ValueError: A token appears twice, or contains a NUL character.
    """
    ranked = list(tokens)
    for token in ranked:
        if NUL in token:
            raise ValueError(f"token {token!r} contains a NUL character: remove it from the log")
    trie = marisa_trie.Trie(ranked)
    if len(trie) != len(ranked):
        raise ValueError(f"{len(ranked) - len(trie)} tokens appear twice: count distinct tokens first")
    ids = np.empty(len(ranked), np.int32)
    ids[[trie[token] for token in ranked]] = np.arange(FIRST, FIRST + len(ranked))
    return Vocabulary(trie, ids)


def open_vocabulary(folder: Path, name: str) -> Vocabulary:
    """Open the vocabulary of the field `name`. Raises ValueError if its two files are invalid or do not match."""
    try:
        # Try this first, because marisa_trie does not report why it cannot open or map a file.
        with (folder / f"{name}.marisa").open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ):
            pass
        trie = marisa_trie.Trie().mmap(str(folder / f"{name}.marisa"))
        # Not np.load, which would also accept a zip archive of any size.
        ids = np.lib.format.open_memmap(folder / f"{name}.ids.npy", mode="r")
        vocabulary = Vocabulary(trie, ids)
        if len(ids) and not FIRST <= ids.min() <= ids.max() < len(vocabulary):
            raise ValueError(f"found ids {ids.min()} to {ids.max()}; expected {FIRST} to {len(vocabulary) - 1}")
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES):
            raise
        reason = str(error).removesuffix(HOW_TO_FIX)
        raise ValueError(f"vocabulary of field {name!r}: {reason}{HOW_TO_FIX}") from error
    return vocabulary
