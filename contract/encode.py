"""One request's values -> the model's input, in two steps: tokens, then ids by any lookup.

The steps are apart because a lookup may be a network away: between them the caller learns which
tokens the request needs, and fetches all of them at once.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.schema import FeatureSchema, Side
from contract.tokens import normalise, number, token
from contract.vocabulary import MISSING, UNKNOWN

LONGEST_NAME = 100  # of what a client sent, in an answer or a log

Features = Mapping[str, Any]
# Field name -> (token -> id; 0 for a token that the vocabulary does not know).
Lookup = Mapping[str, Callable[[str], int]]


class BadFeature(ValueError):
    """A value that cannot be encoded. `path` is the JSON path in the request, `reason` says what to send."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Tokens:
    """What a request says, in canonical form. N candidates that could be read, of maybe more.

    context, candidates: for each categorical field of that side its tokens (None: missing), one and N.
    rows: the N candidates' positions in the request; errors: position -> why it was left out.
    missing: field -> count; ignored: side -> names that the schema does not know.
    """

    context: list[list[str | None]]
    candidates: list[list[str | None]]
    context_values: NDArray[np.float32]
    candidate_values: NDArray[np.float32]
    rows: list[int]
    errors: dict[int, BadFeature]
    missing: Counter[str]
    ignored: Counter[Side]


@dataclass(frozen=True)
class ModelInput:
    """One request for the serving graph: context_ids int64 [1, Fu], candidate_ids int64 [N, Fc],
    values float32 [1, .] and [N, .] (no columns where the schema has no numeric field on that side)."""

    context_ids: NDArray[np.int64]
    candidate_ids: NDArray[np.int64]
    context_values: NDArray[np.float32]
    candidate_values: NDArray[np.float32]


def join(inputs: Sequence[ModelInput]) -> dict[str, NDArray[np.generic]]:
    """Several requests as one call of the serving graph: its inputs by name.

    Value inputs only where the schema has numeric fields on that side: the graph has no others.
    """
    sizes = [len(one.candidate_ids) for one in inputs]
    joined: dict[str, NDArray[np.generic]] = {"request_index": np.repeat(np.arange(len(inputs), dtype=np.int64), sizes)}
    for name in ("context_ids", "candidate_ids", "context_values", "candidate_values"):
        arrays = [getattr(one, name) for one in inputs]
        if name.endswith("_ids") or arrays[0].shape[1]:
            joined[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return joined


class _Reader:
    """Reads the fields of one side, a field at a time over all rows: per value, Python has little left to do."""

    def __init__(self, schema: FeatureSchema, side: Side, longest_token: int, most_names: int) -> None:
        self.side: Side = side
        self._longest_token = longest_token
        self._most_names = most_names
        self.categorical = [f.name for f in schema.select("categorical", side)]
        self.numeric = [f.name for f in schema.select("numeric", side)]
        self._means = np.array([f.mean for f in schema.select("numeric", side)])
        self._stds = np.array([f.std for f in schema.select("numeric", side)])
        self._names = frozenset((*self.categorical, *self.numeric))

    def tokens(self, rows: Sequence[Features]) -> list[list[str | None]]:
        """A column for each categorical field. Raises ValueError for a bad value, without saying whose."""
        if any(len(row) > self._most_names for row in rows):
            raise ValueError("too many names")
        columns = [[token(row.get(name)) for row in rows] for name in self.categorical]
        if any(len(distinct) > self._longest_token for column in columns for distinct in set(column) if distinct):
            raise ValueError("too long")
        return columns

    def numbers(self, rows: Sequence[Features]) -> NDArray[np.float64]:
        """float64 [rows, numeric fields], NaN: missing. Raises ValueError as tokens() does."""
        columns = [[number(row.get(name)) for row in rows] for name in self.numeric]
        return np.array(columns, np.float64).reshape(len(self.numeric), len(rows)).T

    def normalise(self, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
        return normalise(numbers, self._means, self._stds)

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
        for name in (*self.categorical, *self.numeric):
            try:
                value = (token if name in self.categorical else number)(features.get(name))
            except ValueError as error:
                raise BadFeature(f"{path}.{name}", f"field {name!r} {error}") from error
            if isinstance(value, str) and len(value) > self._longest_token:
                reason = f"field {name!r} has {len(value)} characters, this server takes {self._longest_token}"
                raise BadFeature(f"{path}.{name}", f"{reason}: send a shorter value")
            if strict and (value is None or value != value):
                raise BadFeature(
                    f"{path}.{name}", f"field {name!r} is missing, and this server is strict: send a value"
                )

    def count_missing(self, tokens: list[list[str | None]], numbers: NDArray[np.float64], into: Counter[str]) -> None:
        _add(self.categorical, (column.count(None) for column in tokens), into)
        if self.numeric:
            _add(self.numeric, np.isnan(numbers).sum(0).tolist(), into)

    def count_ignored(self, rows: Sequence[Features]) -> int:
        return sum(len(row) - len(self._names & row.keys()) for row in rows)

    def ids(self, tokens: list[list[str | None]], rows: int, lookup: Lookup) -> NDArray[np.int64]:
        """int64 [rows, categorical fields]; each distinct token is looked up once."""
        columns = [_column_ids(column, lookup[name]) for name, column in zip(self.categorical, tokens, strict=True)]
        return np.array(columns, np.int64).reshape(len(columns), rows).T


class Encoder:
    """Encodes requests for one schema. `strict` refuses unknown names and missing values.

    longest_token: characters. most_names: of one object of features.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        strict: bool = False,
        longest_token: int = sys.maxsize,
        most_names: int = sys.maxsize,
    ) -> None:
        self._context = _Reader(schema, "context", longest_token, most_names)
        self._candidate = _Reader(schema, "candidate", longest_token, most_names)
        self._strict = strict
        self.names = frozenset(field.name for field in schema.fields)

    def tokens(self, context: Features, candidates: Sequence[Features], skip_bad: bool = False) -> Tokens:
        """Reads every value.

        Raises:
            BadFeature: for a value that no field takes; in a candidate only unless `skip_bad`, which
                leaves that candidate out and says so in `errors`.
        """
        errors: dict[int, BadFeature] = {}
        if self._strict:
            self._context.check(context, "$.context", True)
            errors = self._bad_candidates(candidates, skip_bad)
        try:
            return self._read(context, candidates, errors)
        except ValueError:
            # Some value is bad: now find out whose.
            self._context.check(context, "$.context", self._strict)
            return self._read(context, candidates, self._bad_candidates(candidates, skip_bad))

    def _bad_candidates(self, candidates: Sequence[Features], skip_bad: bool) -> dict[int, BadFeature]:
        errors: dict[int, BadFeature] = {}
        for index, features in enumerate(candidates):
            try:
                self._candidate.check(features, f"$.candidates[{index}].features", self._strict)
            except BadFeature as error:
                if not skip_bad:
                    raise
                errors[index] = error
        return errors

    def _read(self, context: Features, candidates: Sequence[Features], errors: dict[int, BadFeature]) -> Tokens:
        rows = [index for index in range(len(candidates)) if index not in errors]
        kept = [candidates[index] for index in rows] if errors else candidates
        context_tokens, context_numbers = self._context.tokens([context]), self._context.numbers([context])
        candidate_tokens, candidate_numbers = self._candidate.tokens(kept), self._candidate.numbers(kept)
        missing: Counter[str] = Counter()
        self._context.count_missing(context_tokens, context_numbers, missing)
        self._candidate.count_missing(candidate_tokens, candidate_numbers, missing)
        ignored: Counter[Side] = Counter()
        ignored["context"] = self._context.count_ignored([context])
        ignored["candidate"] = self._candidate.count_ignored(candidates)
        return Tokens(
            context=context_tokens,
            candidates=candidate_tokens,
            context_values=self._context.normalise(context_numbers),
            candidate_values=self._candidate.normalise(candidate_numbers),
            rows=rows,
            errors=errors,
            missing=missing,
            ignored=ignored,
        )

    def wanted(self, tokens: Tokens) -> dict[str, list[str]]:
        """The distinct tokens of a request by field, none where all are missing: what has to be looked up."""
        wanted = {}
        for reader, columns in ((self._context, tokens.context), (self._candidate, tokens.candidates)):
            for name, column in zip(reader.categorical, columns, strict=True):
                wanted[name] = list(dict.fromkeys(t for t in column if t is not None))
        return wanted

    def ids(self, tokens: Tokens, lookup: Lookup) -> tuple[ModelInput, Counter[str]]:
        """The model's input, and how many tokens of each field the vocabulary does not know."""
        context = self._context.ids(tokens.context, 1, lookup)
        candidates = self._candidate.ids(tokens.candidates, len(tokens.rows), lookup)
        unknown: Counter[str] = Counter()
        _add(self._context.categorical, (context == UNKNOWN).sum(0).tolist(), unknown)
        _add(self._candidate.categorical, (candidates == UNKNOWN).sum(0).tolist(), unknown)
        return ModelInput(context, candidates, tokens.context_values, tokens.candidate_values), unknown


def shorten(text: str, longest: int = LONGEST_NAME) -> str:
    """Cut to so many characters."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def _column_ids(column: list[str | None], find: Callable[[str], int]) -> list[int]:
    ids = {t: MISSING if t is None else find(t) for t in set(column)}
    return [ids[t] for t in column]


def _add(names: Sequence[str], counts: Iterable[int], into: Counter[str]) -> None:
    for name, count in zip(names, counts, strict=True):
        if count:
            into[name] += count
