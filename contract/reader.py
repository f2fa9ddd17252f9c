"""Reads the fields of one side of a request, a field at a time over all rows: per value, little is left to do."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from contract.schema import FeatureSchema, Side
from contract.tokens import Numbers, number_reader, token, tokenizer
from contract.vocabulary import MISSING, UNKNOWN

LONGEST_NAME = 100  # of what a client sent, in an answer or a log

Features = Mapping[str, Any]
# Field name -> (token -> id; 0 for a token that the vocabulary does not know).
Lookup = Mapping[str, Callable[[str], int]]
# Field name -> ids that are at hand already, by canonical token; none of them UNKNOWN.
Known = Mapping[str, Mapping[str, int]]
NOTHING: Known = {}
_NONE: Mapping[str, int] = {}


class BadFeature(ValueError):
    """A value that cannot be encoded. `path` is the JSON path in the request, `reason` says what to send."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Column:
    """One categorical field over all rows. ids: those that are known, None elsewhere. places: the rows where there is
    None, and `tokens` what to look up for each (None: missing)."""

    ids: list[int | None]
    places: list[int]
    tokens: list[str | None]

    def known(self) -> int:
        """How many distinct ids were known."""
        return len(set(self.ids)) - bool(self.places)

    def missing(self) -> list[int]:
        """The rows."""
        return [place for place, one in zip(self.places, self.tokens, strict=True) if one is None]

    def found(self, find: Callable[[str], int]) -> list[int | None]:
        """All ids; each distinct token is looked up once."""
        if not self.places:
            return self.ids
        found = {one: MISSING if one is None else find(one) for one in set(self.tokens)}
        ids = self.ids.copy()
        for place, one in zip(self.places, self.tokens, strict=True):
            ids[place] = found[one]
        return ids


class Reader:
    """longest_token: characters. most_names: of one object of features."""

    def __init__(self, schema: FeatureSchema, side: Side, longest_token: int, most_names: int) -> None:
        self.side: Side = side
        self._longest_token = longest_token
        self._most_names = most_names
        self.categorical = [f.name for f in schema.select("categorical", side)]
        self.numeric = [f.name for f in schema.select("numeric", side)]
        self._tokenizers = [tokenizer(f) for f in schema.select("categorical", side)]
        self._transformed = [f.transform is not UNSET for f in schema.select("categorical", side)]
        self._number_readers = [number_reader(f) for f in schema.select("numeric", side)]
        self._numbers = Numbers(schema.select("numeric", side))
        self._names = frozenset((*self.categorical, *self.numeric))

    def columns(self, rows: Sequence[Features], known: Known) -> list[Column]:
        """One for each categorical field. Raises ValueError for a bad value, without saying whose."""
        if rows and max(map(len, rows)) > self._most_names:
            raise ValueError("too many names")
        columns = [
            _column([row.get(name) for row in rows], known.get(name, _NONE), read, transformed)
            for name, read, transformed in zip(self.categorical, self._tokenizers, self._transformed, strict=True)
        ]
        if any(len(one) > self._longest_token for column in columns for one in set(column.tokens) if one):
            raise ValueError("too long")
        return columns

    def numbers(self, rows: Sequence[Features]) -> NDArray[np.float64]:
        """float64 [rows, numeric fields], NaN: missing. Raises ValueError as columns() does."""
        if not self.numeric:
            return np.empty((len(rows), 0))
        readers = zip(self.numeric, self._number_readers, strict=True)
        columns = [[read(row.get(name)) for row in rows] for name, read in readers]
        return np.array(columns, np.float64).reshape(len(self.numeric), len(rows)).T

    def normalise(self, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
        return self._numbers.normalise(numbers) if self.numeric else numbers.astype(np.float32)

    def check(self, features: Features, path: str, strict: bool) -> None:
        """Raises BadFeature for the first value of a row that cannot be encoded; slow, and only for bad news."""
        if len(features) > self._most_names:
            raise BadFeature(path, f"{len(features)} fields, this server takes {self._most_names}: send fewer")
        if strict:
            for name in features:
                if name not in self._names:
                    known = ", ".join(sorted(self._names))
                    name = shorten(name)
                    raise BadFeature(f"{path}.{name}", f"unknown {self.side} field {name!r}: the model reads {known}")
        names, readers = (*self.categorical, *self.numeric), (*self._tokenizers, *self._number_readers)
        for name, read in zip(names, readers, strict=True):
            try:
                value = read(features.get(name))
            except ValueError as error:
                raise BadFeature(f"{path}.{name}", f"field {name!r} {error}") from error
            if isinstance(value, str) and len(value) > self._longest_token:
                reason = f"field {name!r} has {len(value)} characters, this server takes {self._longest_token}"
                raise BadFeature(f"{path}.{name}", f"{reason}: send a shorter value")
            if strict and (value is None or value != value):
                raise BadFeature(
                    f"{path}.{name}", f"field {name!r} is missing, and this server is strict: send a value"
                )

    def count_missing(self, columns: Sequence[Column], numbers: NDArray[np.float64], into: Counter[str]) -> set[int]:
        """Returns the rows that lack something."""
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
        """Of each field, the numbers that train has none like."""
        if self.numeric:
            _add(self.numeric, self._numbers.outside(numbers).sum(0).tolist(), into)

    def count_ignored(self, rows: Sequence[Features], lacking: Iterable[int]) -> int:
        """Names that are not ours. lacking: the rows where one of ours may be absent; the others have them all."""
        ours = len(self._names)
        absent = sum(ours - len(self._names & rows[index].keys()) for index in lacking)
        return sum(map(len, rows)) - ours * len(rows) + absent

    def ids(self, columns: Sequence[Column], rows: int, lookup: Lookup) -> NDArray[np.int64]:
        """int64 [rows, categorical fields]."""
        ids = [
            column.found(lookup[name]) if column.places else column.ids
            for name, column in zip(self.categorical, columns, strict=True)
        ]
        return np.array(ids, np.int64).reshape(len(ids), rows).T

    def count_unknown(self, ids: NDArray[np.int64], columns: Sequence[Column], into: Counter[str]) -> None:
        if any(column.places for column in columns):
            _add(self.categorical, (ids == UNKNOWN).sum(0).tolist(), into)


def shorten(text: str, longest: int = LONGEST_NAME) -> str:
    """Cut to so many characters."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def _column(
    values: list[Any], known: Mapping[str, int], read: Callable[[Any], str | None], transformed: bool
) -> Column:
    """A value that is known as it came is a canonical token: a string without spaces around it. Most are, and a request
    has hundreds. transformed: a token is never what came."""
    if transformed:
        values, read = [read(value) for value in values], token
    try:
        ids = [known.get(value) for value in values]
    except TypeError:  # a list or an object, which token() refuses
        ids = [None] * len(values)
    if None not in ids:
        return Column(ids, [], [])
    places = [place for place, known_as in enumerate(ids) if known_as is None]
    return Column(ids, places, [read(values[place]) for place in places])


def _add(names: Sequence[str], counts: Iterable[int], into: Counter[str]) -> None:
    for name, count in zip(names, counts, strict=True):
        if count:
            into[name] += count
