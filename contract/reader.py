"""Read the fields of one side of a request. Each field is read for all rows at once, which saves work per value."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from contract.pseudonyms import Pseudonymizer
from contract.schema import FeatureSchema, Side
from contract.tokens import Numbers, number_reader, token, tokenizer
from contract.vocabulary import MISSING, UNKNOWN

MAX_NAME_CHARS = 100  # maximum characters of a client's name in an error message or a log

Features = Mapping[str, Any]
# Field name -> function from a token to its id, which is 0 for an unknown token.
Lookup = Mapping[str, Callable[[str], int]]
# Field name -> canonical token -> id, for ids that need no lookup. None of them is UNKNOWN.
Known = Mapping[str, Mapping[str, int]]
NOTHING: Known = {}
_NONE: Mapping[str, int] = {}


class BadFeature(ValueError):
    """A value cannot be encoded. `path` is its JSON path in the request, and `reason` says what to send instead."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Column:
    """One categorical field in all rows.

    Attributes:
        ids: The id of each row, or None if it is not known yet.
        places: The rows whose id is not known yet.
        tokens: The token to look up for each of `places`, or None if the value is missing.
    """

    ids: list[int | None]
    places: list[int]
    tokens: list[str | None]

    def known(self) -> int:
        """Return the number of distinct ids that are known."""
        return len(set(self.ids)) - bool(self.places)

    def missing(self) -> list[int]:
        """Return the rows whose value is missing."""
        return [place for place, text in zip(self.places, self.tokens, strict=True) if text is None]

    def found(self, find: Callable[[str], int]) -> list[int | None]:
        """Return the ids of all rows. Each distinct token is looked up once."""
        if not self.places:
            return self.ids
        found = {text: MISSING if text is None else find(text) for text in set(self.tokens)}
        ids = self.ids.copy()
        for place, text in zip(self.places, self.tokens, strict=True):
            ids[place] = found[text]
        return ids


class Reader:
    """Reads the fields of one side.

    Args:
        schema: The model's fields.
        side: The side to read.
        max_token_chars: Maximum number of characters of a token.
        max_names: Maximum number of names in one object of features.
        pseudonyms: The key for fields with pseudonyms. See `tokenizer`.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        side: Side,
        max_token_chars: int,
        max_names: int,
        pseudonyms: Pseudonymizer | None = None,
    ) -> None:
        self.side: Side = side
        self._max_token_chars = max_token_chars
        self._max_names = max_names
        self.categorical = [f.name for f in schema.select("categorical", side)]
        self.numeric = [f.name for f in schema.select("numeric", side)]
        self._categorical_sources = [f.reads for f in schema.select("categorical", side)]
        self._numeric_sources = [f.reads for f in schema.select("numeric", side)]
        self._tokenizers = [tokenizer(f, pseudonyms) for f in schema.select("categorical", side)]
        # A raw value must not match a pseudonym in the cache, so fields with pseudonyms count as transformed.
        self._transformed = [
            f.transform is not UNSET or f.pseudonym is not UNSET for f in schema.select("categorical", side)
        ]
        self._number_readers = [number_reader(f) for f in schema.select("numeric", side)]
        self._numbers = Numbers(schema.select("numeric", side))
        # The names that a client may send. Several fields may read the same name.
        self._names = frozenset((*self._categorical_sources, *self._numeric_sources))

    def columns(self, rows: Sequence[Features], known: Known) -> list[Column]:
        """Return a column for each categorical field. Raises ValueError for an invalid value, without naming it."""
        if rows and max(map(len, rows)) > self._max_names:
            raise ValueError("too many names")
        columns = [
            _column([row.get(source) for row in rows], known.get(name, _NONE), read, transformed)
            for name, source, read, transformed in zip(
                self.categorical, self._categorical_sources, self._tokenizers, self._transformed, strict=True
            )
        ]
        if any(len(text) > self._max_token_chars for column in columns for text in set(column.tokens) if text):
            raise ValueError("too long")
        return columns

    def numbers(self, rows: Sequence[Features]) -> NDArray[np.float64]:
        """Return the numbers, with NaN for missing ones. Shape: float64 (rows, numeric fields).

        Raises ValueError for an invalid value, without naming it.
        """
        if not self.numeric:
            return np.empty((len(rows), 0))
        readers = zip(self._numeric_sources, self._number_readers, strict=True)
        columns = [[read(row.get(source)) for row in rows] for source, read in readers]
        return np.array(columns, np.float64).reshape(len(self.numeric), len(rows)).T

    def normalize(self, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the normalized numbers. The shape stays (rows, numeric fields)."""
        return self._numbers.normalize(numbers) if self.numeric else numbers.astype(np.float32)

    def check(self, features: Features, path: str, strict: bool) -> None:
        """Raise BadFeature for the first invalid value of a row. This is slower than reading whole columns."""
        if len(features) > self._max_names:
            raise BadFeature(path, f"{len(features)} fields, but the limit is {self._max_names}: send fewer")
        if strict:
            for name in features:
                if name not in self._names:
                    known = ", ".join(sorted(self._names))
                    name = shorten(name)
                    raise BadFeature(f"{path}.{name}", f"unknown {self.side} field {name!r}: expected one of {known}")
        names = (*self._categorical_sources, *self._numeric_sources)
        readers = (*self._tokenizers, *self._number_readers)
        for name, read in zip(names, readers, strict=True):
            try:
                value = read(features.get(name))
            except ValueError as error:
                raise BadFeature(f"{path}.{name}", f"field {name!r} {error}") from error
            if isinstance(value, str) and len(value) > self._max_token_chars:
                reason = f"field {name!r} has {len(value)} characters, but the limit is {self._max_token_chars}"
                raise BadFeature(f"{path}.{name}", f"{reason}: send a shorter value")
            if strict and (value is None or value != value):
                raise BadFeature(
                    f"{path}.{name}", f"field {name!r} is missing, and this server is strict: send a value"
                )

    def count_missing(self, columns: Sequence[Column], numbers: NDArray[np.float64], into: Counter[str]) -> set[int]:
        """Count the missing values of each field. Return the rows that have missing values."""
        rows: set[int] = set()
        for name, column in zip(self.categorical, columns, strict=True):
            if column.places and (missing := column.missing()):
                into[name] += len(missing)
                rows.update(missing)
        if self.numeric:
            absent = np.isnan(numbers)
            _add(self.numeric, absent.sum(0).tolist(), into)
            rows.update(np.flatnonzero(absent.any(1)).tolist())
        return rows

    def count_outside(self, numbers: NDArray[np.float64], into: Counter[str]) -> None:
        """Count the numbers of each field that are outside the range of the training data."""
        if self.numeric:
            _add(self.numeric, self._numbers.outside(numbers).sum(0).tolist(), into)

    def count_ignored(self, rows: Sequence[Features], lacking: Iterable[int]) -> int:
        """Return the number of names that no field reads.

        Args:
            rows: All rows.
            lacking: Indices of the rows in which a field may be absent. All other rows have every field.
        """
        names = len(self._names)
        absent = sum(names - len(self._names & rows[index].keys()) for index in lacking)
        return sum(map(len, rows)) - names * len(rows) + absent

    def ids(self, columns: Sequence[Column], rows: int, lookup: Lookup) -> NDArray[np.int64]:
        """Return the ids. Shape: int64 (rows, categorical fields)."""
        ids = [
            column.found(lookup[name]) if column.places else column.ids
            for name, column in zip(self.categorical, columns, strict=True)
        ]
        return np.array(ids, np.int64).reshape(len(ids), rows).T

    def count_unknown(self, ids: NDArray[np.int64], columns: Sequence[Column], into: Counter[str]) -> None:
        """Count the unknown tokens of each field."""
        if any(column.places for column in columns):
            _add(self.categorical, (ids == UNKNOWN).sum(0).tolist(), into)


def shorten(text: str, max_chars: int = MAX_NAME_CHARS) -> str:
    """Return the text, cut to `max_chars` characters."""
    return text if len(text) <= max_chars else f"{text[:max_chars]}..."


def _column(
    values: list[Any], known: Mapping[str, int], read: Callable[[Any], str | None], transformed: bool
) -> Column:
    """Return the column of a field.

    Args:
        values: The field's value in each row.
        known: Canonical token -> id. A value found here is already a canonical token, as most values are, so `read` is
            not called for it. This saves time, because a request has hundreds of values.
        read: Returns the token of a value.
        transformed: Whether the field has a transform or pseudonyms, so that its values are not its tokens.
    """
    if transformed:
        values, read = [read(value) for value in values], token
    try:
        ids = [known.get(value) for value in values]
    except TypeError:  # A list or an object cannot be looked up. token() will reject it.
        ids = [None] * len(values)
    if None not in ids:
        return Column(ids, [], [])
    places = [place for place, known_as in enumerate(ids) if known_as is None]
    return Column(ids, places, [read(values[place]) for place in places])


def _add(names: Sequence[str], counts: Iterable[int], into: Counter[str]) -> None:
    for name, count in zip(names, counts, strict=True):
        if count:
            into[name] += count
