"""Find values that a client can send so that they become given tokens: the inverse of contract/tokens.py.

Golden requests, load tests and the example request consist of these values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from msgspec import UNSET

from contract.pseudonyms import unknown_pseudonym
from contract.reader import Lookup
from contract.schema import TIME_TRANSFORMS, Field
from contract.tokens import number_in_bucket, number_reader, tokenizer
from contract.vocabulary import UNKNOWN

FIRST_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 800  # Long enough for every weekday to fall on every day of the month.
UNKNOWN_NUMBER = -1e9  # Not in any log_square bucket of a log with plausible numbers.


@dataclass(frozen=True)
class Source:
    """A name in requests, and the fields that read it.

    Attributes:
        name: The name.
        fields: The fields.
        known: Values whose tokens are in the vocabularies of all these fields, in the order of the given tokens. Empty
            if no field is categorical.
    """

    name: str
    fields: tuple[Field, ...]
    known: Sequence[str | float]

    @property
    def is_numeric(self) -> bool:
        """Whether all fields are numeric, so that any number is known."""
        return all(field.kind == "numeric" for field in self.fields)

    def number(self, deviations: float) -> float:
        """Return the number that, after the transform, is this many standard deviations above the mean."""
        field = self.fields[0]
        number = field.mean + deviations * field.std
        return math.copysign(math.expm1(min(abs(number), 700)), number) if field.transform == "log1p" else number

    def unknown(self, index: int) -> str | float:
        """Return a value that is in no vocabulary, if possible. Different indices give different values."""
        if any(field.transform in TIME_TRANSFORMS for field in self.fields):
            known = frozenset(self.known)
            moments = [value for value in _moments(_needs_numbers(self.fields)) if value not in known] or self.known
            return moments[index % len(moments)]
        if self._has_pseudonyms:  # A raw value could be read only with the key.
            return unknown_pseudonym(index)
        return UNKNOWN_NUMBER - index if _needs_numbers(self.fields) else f"unseen-{index}"

    def example(self) -> str | float:
        """Return a value that every server accepts, and that is known if possible."""
        if self.known:
            return self.known[0]
        values = self._examples()
        # Any of these values, such as the mean, may be one that means "missing", which a strict server refuses.
        return next((value for value in values if self.is_known(value, {})), values[0])

    def _examples(self) -> Sequence[str | float]:
        tries = range(2 + sum(len(field.missing or ()) for field in self.fields))
        if self.is_numeric:
            return [self.number(float(deviations)) for deviations in tries]
        if any(field.transform in TIME_TRANSFORMS for field in self.fields):
            return _moments(_needs_numbers(self.fields))[12:]
        if self._has_pseudonyms:
            return [self.unknown(0)]
        return [1.0 + n for n in tries] if _needs_numbers(self.fields) else ["unknown", *map(self.unknown, tries)]

    @property
    def _has_pseudonyms(self) -> bool:
        return any(field.pseudonym is not UNSET for field in self.fields)

    def is_known(self, value: Any, lookup: Lookup) -> bool:
        """Return whether every field can read the value, and every vocabulary in `lookup` contains its token.

        A missing value is not known.

        Args:
            value: The value.
            lookup: Field name -> function from a token to its id. If a field is absent, all of its tokens are known.
        """
        try:
            return all(_knows(field, value, lookup) for field in self.fields)
        except ValueError:
            return False


def sources(fields: Sequence[Field], tokens: Mapping[str, Sequence[str]]) -> list[Source]:
    """Group the fields of one side by the name that they read, in the order of each name's first field.

    Args:
        fields: The fields.
        tokens: The tokens that the values of each categorical field should become.
    """
    groups: dict[str, list[Field]] = {}
    for field in fields:
        groups.setdefault(field.reads, []).append(field)
    return [Source(name, tuple(group), known_values(group, tokens)) for name, group in groups.items()]


def known_values(fields: Sequence[Field], tokens: Mapping[str, Sequence[str]]) -> Sequence[str | float]:
    """Return values that each of these fields converts to one of its tokens. All fields read the same name."""
    categorical = [field for field in fields if field.kind == "categorical"]
    if not categorical:
        return ()
    if len(fields) == 1 and fields[0].transform is UNSET:
        return tokens[fields[0].name]
    candidates: Sequence[str | float]
    timed = [field for field in categorical if field.transform in TIME_TRANSFORMS]
    if timed:
        candidates = _moments(_needs_numbers(fields))
    else:
        # Start from a field whose tokens are the values themselves. A bucket contains many numbers, which a different
        # field's vocabulary may not contain.
        first = min(categorical, key=lambda field: field.transform is not UNSET)
        candidates = [value for token in tokens[first.name] for value in _values_of(first, token, fields)]
    readers = [(tokenizer(field), frozenset(tokens[field.name])) for field in categorical]
    return [value for value in candidates if all(_reads(read, value) in known for read, known in readers)]


def _knows(field: Field, value: Any, lookup: Lookup) -> bool:
    if field.kind == "numeric":
        return not math.isnan(number_reader(field)(value))
    token = tokenizer(field)(value)
    return token is not None and (field.name not in lookup or lookup[field.name](token) != UNKNOWN)


def _values_of(field: Field, token: str, fields: Sequence[Field]) -> list[str | float]:
    """Return a list with one value that has this token and that all fields can read, or an empty list."""
    if field.transform == "log_square":
        return [number_in_bucket(token)]
    if not _needs_numbers(fields):
        return [token]
    try:
        number = float(token)
    except ValueError:
        return []
    return [number] if math.isfinite(number) else []


def _needs_numbers(fields: Sequence[Field]) -> bool:
    """Return whether any of these fields can read only numbers."""
    return any(field.kind == "numeric" or field.transform == "log_square" for field in fields)


def _reads(read: Any, value: str | float) -> str | None:
    try:
        token: str | None = read(value)
    except ValueError:
        return None
    return token


@cache
def _moments(numbers: bool) -> Sequence[str | float]:
    """Return every hour of DAYS days, as ISO 8601 text and Unix milliseconds on alternate days.

    Args:
        numbers: Whether to return only milliseconds.
    """
    moments: list[str | float] = []
    for hour in range(24 * DAYS):
        moment = FIRST_MOMENT + timedelta(hours=hour)
        as_number = numbers or hour // 24 % 2
        moments.append(int(moment.timestamp()) * 1000 if as_number else f"{moment:%Y-%m-%dT%H:%M:%SZ}")
    return moments
