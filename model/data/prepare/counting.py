"""Numbering the distinct values of a column and assigning their final ids."""

import sys

import numpy as np
import polars as pl
from msgspec import UNSET
from numpy.typing import NDArray

from contract.pseudonyms import Pseudonymizer
from contract.schema import TIME_TRANSFORMS, Field
from contract.tokens import tokenizer
from contract.vocabulary import FIRST, MISSING, NUL, UNKNOWN, Vocabulary, build_vocabulary
from model.data.prepare.columns import BadValueError, holds, parse_numbers

# All characters that str.strip() removes.
SPACES = "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1))))


class DistinctValues:
    """The distinct values of a column, numbered in the order of their first occurrence.

    Each value in the log is hashed only once. All later steps work on the codes.
    """

    def __init__(self) -> None:
        self._categories = pl.Categories.random("ctr-prepare", pl.UInt32)
        # polars drops the values when no column uses them anymore, so this column keeps a reference.
        self._reference = pl.Series(dtype=pl.Categorical(self._categories))
        self._count = 0

    def codes(self, text: pl.Series) -> NDArray[np.int32]:
        """Return the code of each row, int32 (rows): 0 for null, c for the value distinct()[c - 1]."""
        codes = (text.cast(self._reference.dtype).to_physical().cast(pl.Int32) + 1).fill_null(0).to_numpy()
        self._count = max(self._count, int(codes.max(initial=0)))
        return codes

    def distinct(self) -> pl.Series:
        """Return the values in the order of their codes."""
        # Categories.to_series() would read the values one at a time.
        numbers = pl.int_range(self._count, dtype=pl.UInt32, eager=True)
        return numbers.cat.to(self._reference.dtype).cast(pl.String)


def count_tokens(
    distinct: pl.Series,
    rows: NDArray[np.int64],
    field: Field,
    min_count: int,
    pseudonyms: Pseudonymizer | None = None,
    trained: NDArray[np.int64] | None = None,
) -> tuple[Vocabulary, NDArray[np.int32]]:
    """Return a field's vocabulary and the id of each code, int32 (1 + distinct values).

    The vocabulary contains the tokens that occur in at least `min_count` rows, of which training uses at least one. The
    most frequent one is first. Ties are sorted by token.

    Args:
        distinct: The values (see DistinctValues).
        rows: The number of rows of train with each code, (1 + distinct values).
        field: The field.
        min_count: The minimum number of rows for a token.
        pseudonyms: The key, which a field with pseudonyms needs.
        trained: The number of the rows that training uses, (1 + distinct values), or None for all rows.

    Raises:
        BadValueError: If a value cannot be a token. The error's row is a position in `distinct`.
    """
    tokens = tokenize(distinct, field, pseudonyms)
    if tokens is distinct:
        codes = np.arange(1, 1 + len(distinct), dtype=np.int32)
    else:  # two values may be the same token, such as "x" and " x "
        values = DistinctValues()
        codes = values.codes(tokens)
        tokens = values.distinct()
    counts = np.bincount(codes, rows[1:], len(tokens) + 1).astype(np.int64)
    used = counts if trained is None else np.bincount(codes, trained[1:], len(tokens) + 1)
    kept = np.flatnonzero((counts[1:] >= min_count) & (used[1:] > 0)) + 1
    ranked = pl.DataFrame({"code": kept, "token": tokens.gather(kept - 1), "rows": counts[kept]})
    ranked = ranked.sort("rows", "token", descending=[True, False])
    ids = np.full(len(counts), UNKNOWN, np.int32)
    ids[0] = MISSING
    ids[ranked["code"].to_numpy()] = np.arange(FIRST, FIRST + len(ranked))
    return build_vocabulary(ranked["token"].to_list()), np.append(np.int32(MISSING), ids[codes])


def look_up_tokens(vocabulary: Vocabulary, distinct: pl.Series, field: Field) -> NDArray[np.int32]:
    """Return the id of each code in an existing vocabulary, int32 (1 + distinct values). Raises like count_tokens()."""
    tokens = tokenize(distinct, field).to_list()
    return np.array([MISSING, *(MISSING if token is None else vocabulary(token) for token in tokens)], np.int32)


def tokenize(distinct: pl.Series, field: Field, pseudonyms: Pseudonymizer | None = None) -> pl.Series:
    """Return the token of each distinct value. Null means missing. Raises like count_tokens()."""
    has_pseudonyms = field.pseudonym is not UNSET
    if (nul := distinct.str.contains(NUL, literal=True)).any():
        row = nul.arg_max()
        assert row is not None
        held = "holds a value that may not be shown" if has_pseudonyms else holds(distinct[row])
        reason = f"{held}; a token cannot contain NUL (U+0000). Remove the character."
        raise BadValueError(distinct.name, reason, row)
    if field.transform in TIME_TRANSFORMS:
        return distinct  # columns.time_column() has converted them already
    read = tokenizer(field, pseudonyms)
    if has_pseudonyms:
        return pl.Series([read(value) for value in distinct.to_list()], dtype=pl.String)
    if field.transform is not UNSET:
        numbers: list[float | None] = parse_numbers(distinct, field).to_list()
        return pl.Series([read(number) for number in numbers], dtype=pl.String)
    # Most values, for example millions of hashed ids, are already tokens. Only the others are converted in Python.
    bare = distinct.str.strip_chars(SPACES)
    others = distinct.filter((bare != distinct) | bare.is_in(["", *(field.missing or ())]))
    tokens = pl.Series([read(value) for value in others.to_list()], dtype=pl.String)
    return distinct.replace(others, tokens) if len(others) else distinct
