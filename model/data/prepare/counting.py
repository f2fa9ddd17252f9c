"""The distinct values of one column over all batches, and the ids that they get in the end."""

import sys

import numpy as np
import polars as pl
from msgspec import UNSET
from numpy.typing import NDArray

from contract.schema import Field
from contract.tokens import tokenizer
from contract.vocabulary import FIRST, MISSING, NUL, UNKNOWN, Vocabulary, build_vocabulary
from model.data.prepare.columns import BadValueError, numbers_in

# What str.strip() takes away.
SPACES = "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1))))


class Values:
    """Numbers the distinct values of a column as they come; a value is hashed once, whatever happens later."""

    def __init__(self) -> None:
        self._categories = pl.Categories.random("ctr-prepare", pl.UInt32)
        # polars forgets the values when no column has them any more.
        self._keep = pl.Series(dtype=pl.Categorical(self._categories))

    def codes(self, text: pl.Series) -> NDArray[np.int32]:
        """int32 [rows]: 0 is null, and code c the value distinct()[c - 1]."""
        codes = text.cast(pl.Categorical(self._categories)).to_physical()
        return (codes.cast(pl.Int32) + 1).fill_null(0).to_numpy()

    def distinct(self) -> pl.Series:
        return self._categories.to_series()


class UnreadableError(ValueError):
    """A distinct value of a column that cannot be a token."""

    def __init__(self, value: str, reason: str) -> None:
        super().__init__(reason)
        self.value = value
        self.reason = reason


def number_tokens(
    distinct: pl.Series, rows: NDArray[np.int64], field: Field, min_count: int
) -> tuple[Vocabulary, NDArray[np.int32]]:
    """The vocabulary, and the id of each code (see Values), int32 [1 + distinct values].

    The vocabulary has the tokens seen at least `min_count` times, the most frequent first, ties in the order of the
    tokens. rows: of train, for each code.

    Raises:
        UnreadableError: for a value with a NUL character, or that is no number where one is wanted.
    """
    tokens, codes = _numbered(_tokens(distinct, field), distinct)
    counts = np.bincount(codes, rows[1:], len(tokens) + 1).astype(np.int64)
    kept = np.flatnonzero(counts[1:] >= min_count) + 1
    ranked = pl.DataFrame({"code": kept, "token": tokens.gather(kept - 1), "rows": counts[kept]})
    ranked = ranked.sort("rows", "token", descending=[True, False])
    ids = np.full(len(counts), UNKNOWN, np.int32)
    ids[0] = MISSING
    ids[ranked["code"].to_numpy()] = np.arange(FIRST, FIRST + len(ranked))
    return build_vocabulary(ranked["token"].to_list()), np.append(np.int32(MISSING), ids[codes])


def ids_in(vocabulary: Vocabulary, distinct: pl.Series, field: Field) -> NDArray[np.int32]:
    """The id of each code in a vocabulary that is given, as number_tokens() for one that is counted."""
    tokens = _tokens(distinct, field).to_list()
    return np.array([MISSING, *(MISSING if one is None else vocabulary(one) for one in tokens)], np.int32)


def _tokens(distinct: pl.Series, field: Field) -> pl.Series:
    nul = distinct.filter(distinct.str.contains(NUL, literal=True))
    if len(nul):
        raise UnreadableError(nul[0], "no vocabulary keeps a NUL character, remove it")
    read = tokenizer(field)
    if field.transform is not UNSET:
        return pl.Series([read(value) for value in _numbers(distinct, field)], dtype=pl.String)
    # Python reads only what is no token as it stands: millions of hashed ids are.
    bare = distinct.str.strip_chars(SPACES)
    strange = distinct.filter((bare != distinct) | bare.is_in(["", *(field.missing or ())]))
    tokens = pl.Series([read(value) for value in strange.to_list()], dtype=pl.String)
    return distinct.replace(strange, tokens) if len(strange) else distinct


def _numbered(tokens: pl.Series, distinct: pl.Series) -> tuple[pl.Series, NDArray[np.int32]]:
    """Distinct tokens, and the code of each value's token among them, as Values has it."""
    if tokens is distinct:
        return distinct, np.arange(1, 1 + len(distinct), dtype=np.int32)
    values = Values()  # two values may be one token: "x" and " x "
    codes = values.codes(tokens)
    return values.distinct(), codes


def _numbers(distinct: pl.Series, field: Field) -> list[float | None]:
    """Of text; None for what is missing."""
    try:
        numbers: list[float | None] = numbers_in(distinct, field).to_list()
    except BadValueError as error:
        if error.row is None:
            raise
        raise UnreadableError(distinct[error.row], error.reason) from error
    return numbers
