"""One request's values -> the model's input, in two steps: tokens, then ids by any lookup.

The steps are apart because a lookup may be a network away: between them the caller learns which
tokens the request needs, and fetches all of them at once.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contract.reader import NOTHING, BadFeature, Column, Features, Known, Lookup, Reader
from contract.schema import FeatureSchema, Side

NO_ERRORS: Mapping[int, BadFeature] = {}


@dataclass(frozen=True)
class Tokens:
    """What a request says, in canonical form. N candidates that could be read, of maybe more.

    context, candidates: for each categorical field of that side its values, one and N.
    rows: the N candidates' positions in the request; errors: position -> why it was left out.
    missing, outside: field -> count (outside: numbers beyond those of train); ignored: side -> names that the schema
    does not know.
    """

    context: list[Column]
    candidates: list[Column]
    context_values: NDArray[np.float32]
    candidate_values: NDArray[np.float32]
    rows: list[int]
    errors: Mapping[int, BadFeature]
    missing: Counter[str]
    outside: Counter[str]
    ignored: Counter[Side]

    def known(self) -> int:
        """How many distinct tokens' ids were at hand."""
        return sum(column.known() for column in (*self.context, *self.candidates))


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
    joined: dict[str, NDArray[np.generic]] = {"request_index": _request_index(inputs)}
    for name in ("context_ids", "candidate_ids", "context_values", "candidate_values"):
        arrays = [getattr(one, name) for one in inputs]
        if name.endswith("_ids") or arrays[0].shape[1]:
            joined[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return joined


def _request_index(inputs: Sequence[ModelInput]) -> NDArray[np.int64]:
    if len(inputs) == 1:
        return np.zeros(len(inputs[0].candidate_ids), np.int64)
    return np.repeat(np.arange(len(inputs), dtype=np.int64), [len(one.candidate_ids) for one in inputs])


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
        self._context = Reader(schema, "context", longest_token, most_names)
        self._candidate = Reader(schema, "candidate", longest_token, most_names)
        self._strict = strict
        self.names = frozenset(field.name for field in schema.fields)

    def tokens(
        self,
        context: Features,
        candidates: Sequence[Features],
        skip_bad: bool = False,
        known: Known = NOTHING,
        errors: Mapping[int, BadFeature] = NO_ERRORS,
    ) -> Tokens:
        """Read every value of a request.

        Args:
            context: Values by field name.
            candidates: Values by field name, for each candidate.
            skip_bad: Leave out a candidate with a bad value and report it in `Tokens.errors`, instead of raising.
            known: Ids that need no lookup.
            errors: Candidates that are known to be bad already, by position. They are left out without a look at
                their values.

        Raises:
            BadFeature: A value does not fit its field. In a candidate, only without `skip_bad`.
        """
        if self._strict:
            self._context.check(context, "$.context", True)
            errors = self._all_errors(candidates, skip_bad, errors)
        try:
            return self._read(context, candidates, errors, known)
        except ValueError:
            # Reading whole columns does not tell which value is bad. Check value by value to find it.
            self._context.check(context, "$.context", self._strict)
            return self._read(context, candidates, self._all_errors(candidates, skip_bad, errors), known)

    def _all_errors(
        self, candidates: Sequence[Features], skip_bad: bool, known: Mapping[int, BadFeature]
    ) -> dict[int, BadFeature]:
        """Return the error of each bad candidate by position, the known ones included."""
        errors = dict(known)
        for index, features in enumerate(candidates):
            if index in errors:
                continue
            try:
                self._candidate.check(features, f"$.candidates[{index}].features", self._strict)
            except BadFeature as error:
                if not skip_bad:
                    raise
                errors[index] = error
        return errors

    def _read(
        self, context: Features, candidates: Sequence[Features], errors: Mapping[int, BadFeature], known: Known
    ) -> Tokens:
        rows = [index for index in range(len(candidates)) if index not in errors]
        kept = [candidates[index] for index in rows] if errors else candidates
        context_columns = self._context.columns([context], known)
        candidate_columns = self._candidate.columns(kept, known)
        context_numbers, candidate_numbers = self._context.numbers([context]), self._candidate.numbers(kept)
        missing: Counter[str] = Counter()
        context_lacks = self._context.count_missing(context_columns, context_numbers, missing)
        candidates_lack = self._candidate.count_missing(candidate_columns, candidate_numbers, missing)
        outside: Counter[str] = Counter()
        self._context.count_outside(context_numbers, outside)
        self._candidate.count_outside(candidate_numbers, outside)
        ignored: Counter[Side] = Counter()
        ignored["context"] = self._context.count_ignored([context], context_lacks)
        ignored["candidate"] = self._candidate.count_ignored(
            candidates, {*errors, *(rows[place] for place in candidates_lack)}
        )
        return Tokens(
            context=context_columns,
            candidates=candidate_columns,
            context_values=self._context.normalise(context_numbers),
            candidate_values=self._candidate.normalise(candidate_numbers),
            rows=rows,
            errors=errors,
            missing=missing,
            outside=outside,
            ignored=ignored,
        )

    def wanted(self, tokens: Tokens) -> dict[str, list[str]]:
        """What has to be looked up: distinct tokens by field, none where all are missing."""
        wanted = {}
        for reader, columns in ((self._context, tokens.context), (self._candidate, tokens.candidates)):
            for name, column in zip(reader.categorical, columns, strict=True):
                if column.places:
                    wanted[name] = list(dict.fromkeys(one for one in column.tokens if one is not None))
        return wanted

    def ids(self, tokens: Tokens, lookup: Lookup) -> tuple[ModelInput, Counter[str]]:
        """The model's input, and how many tokens of each field the vocabulary does not know."""
        context = self._context.ids(tokens.context, 1, lookup)
        candidates = self._candidate.ids(tokens.candidates, len(tokens.rows), lookup)
        unknown: Counter[str] = Counter()
        self._context.count_unknown(context, tokens.context, unknown)
        self._candidate.count_unknown(candidates, tokens.candidates, unknown)
        return ModelInput(context, candidates, tokens.context_values, tokens.candidate_values), unknown
