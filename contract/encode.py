"""One request's values -> the model's input, in two steps: tokens, then ids by any lookup.

The steps are apart because a lookup may be a network away: between them the caller learns which
tokens the request needs, and fetches all of them at once.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.schema import FeatureSchema, Side
from contract.tokens import normalise, number, token
from contract.vocabulary import MISSING, UNKNOWN

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

    context: one token (None: missing) for each categorical context field; candidates: N such rows.
    rows: the N candidates' positions in the request; errors: position -> why it was left out.
    missing: field -> count; ignored: side -> names that the schema does not know.
    """

    context: list[str | None]
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


class _Reader:
    """Reads the fields of one side out of a JSON object."""

    def __init__(self, schema: FeatureSchema, side: Side, strict: bool) -> None:
        self.side: Side = side
        self.categorical = [f.name for f in schema.select("categorical", side)]
        self.numeric = schema.select("numeric", side)
        self._names = frozenset(self.categorical).union(f.name for f in self.numeric)
        self._strict = strict

    def read(self, features: Features, path: str) -> tuple[list[str | None], list[float]]:
        """Tokens (None: missing) and numbers (NaN: missing), each in schema order."""
        tokens = [self._read(features, name, token, path) for name in self.categorical]
        numbers = [self._read(features, f.name, number, path) for f in self.numeric]
        if self._strict:
            self._refuse_unknown_names(features, path)
            self._refuse_missing(tokens, numbers, path)
        return tokens, numbers

    def _read(self, features: Features, name: str, convert: Callable[[Any], Any], path: str) -> Any:
        try:
            return convert(features.get(name))
        except ValueError as error:
            raise BadFeature(f"{path}.{name}", f"field {name!r} {error}") from error

    def _refuse_unknown_names(self, features: Features, path: str) -> None:
        for name in features:
            if name not in self._names:
                known = ", ".join(sorted(self._names))
                raise BadFeature(f"{path}.{name}", f"unknown {self.side} field {name!r}: the model reads {known}")

    def _refuse_missing(self, tokens: list[str | None], numbers: list[float], path: str) -> None:
        missing = [name for name, t in zip(self.categorical, tokens, strict=True) if t is None]
        missing += [f.name for f, value in zip(self.numeric, numbers, strict=True) if math.isnan(value)]
        if missing:
            reason = f"field {missing[0]!r} is missing, and this server is strict: send a value"
            raise BadFeature(f"{path}.{missing[0]}", reason)

    def normalise(self, numbers: list[list[float]]) -> NDArray[np.float32]:
        values = np.array(numbers, np.float64).reshape(len(numbers), len(self.numeric))
        return normalise(values, [f.mean for f in self.numeric], [f.std for f in self.numeric])

    def count_missing(self, tokens: list[list[str | None]], numbers: list[list[float]], into: Counter[str]) -> None:
        _count(self.categorical, [[t is None for t in row] for row in tokens], into)
        _count([f.name for f in self.numeric], [[math.isnan(x) for x in row] for row in numbers], into)

    def ignored(self, features: Features) -> int:
        return len(features) - len(self._names & features.keys())


class Encoder:
    """Encodes requests for one schema. `strict` refuses unknown names and missing values."""

    def __init__(self, schema: FeatureSchema, strict: bool = False) -> None:
        self._context = _Reader(schema, "context", strict)
        self._candidate = _Reader(schema, "candidate", strict)

    def tokens(self, context: Features, candidates: Sequence[Features], skip_bad: bool = False) -> Tokens:
        """Reads every value.

        Raises:
            BadFeature: for a value that no field takes; in a candidate only unless `skip_bad`, which
                leaves that candidate out and says so in `errors`.
        """
        context_row = self._context.read(context, "$.context")
        rows: list[int] = []
        read: list[tuple[list[str | None], list[float]]] = []
        errors: dict[int, BadFeature] = {}
        for index, features in enumerate(candidates):
            try:
                read.append(self._candidate.read(features, f"$.candidates[{index}].features"))
                rows.append(index)
            except BadFeature as error:
                if not skip_bad:
                    raise
                errors[index] = error
        missing: Counter[str] = Counter()
        tokens, numbers = [row for row, _ in read], [row for _, row in read]
        self._context.count_missing([context_row[0]], [context_row[1]], missing)
        self._candidate.count_missing(tokens, numbers, missing)
        ignored: Counter[Side] = Counter({"context": self._context.ignored(context)})
        ignored["candidate"] = sum(map(self._candidate.ignored, candidates))
        return Tokens(
            context=context_row[0],
            candidates=tokens,
            context_values=self._context.normalise([context_row[1]]),
            candidate_values=self._candidate.normalise(numbers),
            rows=rows,
            errors=errors,
            missing=missing,
            ignored=ignored,
        )

    def wanted(self, tokens: Tokens) -> dict[str, list[str]]:
        """The distinct tokens of a request by field: what a remote lookup has to fetch."""
        wanted = {name: [t] for name, t in zip(self._context.categorical, tokens.context, strict=True) if t is not None}
        columns = zip(*tokens.candidates, strict=True)
        for name, column in zip(self._candidate.categorical, columns, strict=False):
            distinct = dict.fromkeys(t for t in column if t is not None)
            if distinct:
                wanted[name] = list(distinct)
        return wanted

    def ids(self, tokens: Tokens, lookup: Lookup) -> tuple[ModelInput, Counter[str]]:
        """The model's input, and how many tokens of each field the vocabulary does not know."""
        context = self._ids([tokens.context], self._context, lookup)
        candidates = self._ids(tokens.candidates, self._candidate, lookup)
        unknown: Counter[str] = Counter()
        _count(self._context.categorical, context == UNKNOWN, unknown)
        _count(self._candidate.categorical, candidates == UNKNOWN, unknown)
        return ModelInput(context, candidates, tokens.context_values, tokens.candidate_values), unknown

    def _ids(self, rows: list[list[str | None]], reader: _Reader, lookup: Lookup) -> NDArray[np.int64]:
        finders = [lookup[name] for name in reader.categorical]
        ids = [[MISSING if t is None else find(t) for t, find in zip(row, finders, strict=True)] for row in rows]
        return np.array(ids, np.int64).reshape(len(rows), len(finders))


def _count(names: Sequence[str], flags: Any, into: Counter[str]) -> None:
    """Adds to `into` how often each column of flags [rows, names] is set."""
    if not len(flags):
        return
    for name, count in zip(names, np.asarray(flags, bool).reshape(len(flags), len(names)).sum(0).tolist(), strict=True):
        if count:
            into[name] += count
