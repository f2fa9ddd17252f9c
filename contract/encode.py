"""Encode a request for the model in two steps: values to tokens, then tokens to ids with the caller's lookup functions.

The steps are separate because the lookup may need the network. Between them, the caller gets the tokens that the
request needs, and fetches all of their ids at once.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from contract.pseudonyms import Pseudonymizer
from contract.reader import NOTHING, BadFeature, Column, Features, Known, Lookup, Reader
from contract.schema import FeatureSchema, Side
from contract.tokens import tokenizer

NO_ERRORS: Mapping[int, BadFeature] = {}


@dataclass(frozen=True)
class Tokens:
    """The values of a request in canonical form, with N valid candidates.

    Attributes:
        context: The columns of the categorical context fields, one row each.
        candidates: The columns of the categorical candidate fields, N rows each.
        context_values: Normalized numbers. Shape: (1, numeric context fields).
        candidate_values: Normalized numbers. Shape: (N, numeric candidate fields).
        rows: Positions of the N candidates in the request.
        errors: Position in the request -> why the candidate was left out.
        missing: Field -> number of missing values.
        outside: Field -> number of values outside the range of the training data.
        ignored: Side -> number of names that no field reads.
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
        """Return the number of distinct tokens whose ids were already known."""
        return sum(column.known() for column in (*self.context, *self.candidates))


@dataclass(frozen=True)
class ModelInput:
    """One request for the serving graph.

    Legend: N candidates, Fu and Fc categorical fields of the context and of a candidate. If the schema has no numeric
    field on a side, the values of that side have no columns.

    Attributes:
        context_ids: Shape: int64 (1, Fu).
        candidate_ids: Shape: int64 (N, Fc).
        context_values: Shape: float32 (1, numeric context fields).
        candidate_values: Shape: float32 (N, numeric candidate fields).
    """

    context_ids: NDArray[np.int64]
    candidate_ids: NDArray[np.int64]
    context_values: NDArray[np.float32]
    candidate_values: NDArray[np.float32]


def join(inputs: Sequence[ModelInput]) -> dict[str, NDArray[np.generic]]:
    """Return the inputs of the serving graph, by name, for one run with several requests.

    The graph has a value input for a side only if the schema has numeric fields on that side.
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
    """Encodes requests for one schema.

    Args:
        schema: The model's fields.
        strict: Refuse unknown names and missing values.
        longest_token: Maximum number of characters of a token.
        most_names: Maximum number of names in one features object.
        pseudonyms: The key for fields with pseudonyms. Without a key, their values must be pseudonyms already.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        strict: bool = False,
        longest_token: int = sys.maxsize,
        most_names: int = sys.maxsize,
        pseudonyms: Pseudonymizer | None = None,
    ) -> None:
        self._context = Reader(schema, "context", longest_token, most_names, pseudonyms)
        self._candidate = Reader(schema, "candidate", longest_token, most_names, pseudonyms)
        self._strict = strict
        self.names = frozenset(field.reads for field in schema.fields)  # the names that a client may send
        self._pseudonym_readers = {
            field.reads: tokenizer(field, pseudonyms) for field in schema.fields if field.pseudonym is not UNSET
        }

    @property
    def pseudonym_names(self) -> Set[str]:
        """The names that fields with pseudonyms read."""
        return self._pseudonym_readers.keys()

    def without_raw_values(self, features: Features) -> Features:
        """Return features that may be written: in names of fields with pseudonyms, values are pseudonyms or None.

        The model reads the same from them as from the given features. A value that the field cannot read becomes None.
        A name is replaced on both sides of a request, because a client may send it on the wrong side.
        """
        if features.keys().isdisjoint(self._pseudonym_readers):
            return features
        return {
            name: _token_or_none(self._pseudonym_readers[name], value) if name in self._pseudonym_readers else value
            for name, value in features.items()
        }

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
            errors: Candidates that are already known to be bad, by position. They are left out, and their values are
                not read.

        Raises:
            BadFeature: A value is not valid for its field. With `skip_bad`, only values of the context raise it.
        """
        if self._strict:
            self._context.check(context, "$.context", True)
            errors = self._all_errors(candidates, skip_bad, errors)
        try:
            return self._read(context, candidates, errors, known)
        except ValueError:
            # Reading whole columns does not show which value is bad. Check value by value to find it.
            self._context.check(context, "$.context", self._strict)
            return self._read(context, candidates, self._all_errors(candidates, skip_bad, errors), known)

    def rows(self, contexts: Sequence[Features], candidates: Sequence[Features], lookup: Lookup) -> ModelInput:
        """Return the input of N requests with one candidate each. The shapes are those of N contexts and N candidates.

        Raises:
            ValueError: A value is not valid for its field. See `row_errors`.
        """
        sides = (self._context, contexts), (self._candidate, candidates)
        context_ids, candidate_ids = (
            reader.ids(reader.columns(rows, NOTHING), len(rows), lookup) for reader, rows in sides
        )
        context_values, candidate_values = (reader.normalize(reader.numbers(rows)) for reader, rows in sides)
        return ModelInput(context_ids, candidate_ids, context_values, candidate_values)

    def row_errors(self, rows: Sequence[Features]) -> dict[int, BadFeature]:
        """Return the first error of each row with a bad value, by position. Each row has the values of both sides."""
        errors: dict[int, BadFeature] = {}
        for index, features in enumerate(rows):
            try:
                self._context.check(features, "$", False)
                self._candidate.check(features, "$", False)
            except BadFeature as error:
                errors[index] = error
        return errors

    def _all_errors(
        self, candidates: Sequence[Features], skip_bad: bool, known: Mapping[int, BadFeature]
    ) -> dict[int, BadFeature]:
        """Return the error of each bad candidate by position, including the known ones."""
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
            context_values=self._context.normalize(context_numbers),
            candidate_values=self._candidate.normalize(candidate_numbers),
            rows=rows,
            errors=errors,
            missing=missing,
            outside=outside,
            ignored=ignored,
        )

    def wanted(self, tokens: Tokens) -> dict[str, list[str]]:
        """Return the tokens that must be looked up: distinct tokens by field.

        A field whose ids are all known is left out. A field whose values are all missing has an empty list.
        """
        wanted = {}
        for reader, columns in ((self._context, tokens.context), (self._candidate, tokens.candidates)):
            for name, column in zip(reader.categorical, columns, strict=True):
                if column.places:
                    wanted[name] = list(dict.fromkeys(one for one in column.tokens if one is not None))
        return wanted

    def ids(self, tokens: Tokens, lookup: Lookup) -> tuple[ModelInput, Counter[str]]:
        """Return the model's input, and the number of tokens of each field that are not in the vocabulary."""
        context = self._context.ids(tokens.context, 1, lookup)
        candidates = self._candidate.ids(tokens.candidates, len(tokens.rows), lookup)
        unknown: Counter[str] = Counter()
        self._context.count_unknown(context, tokens.context, unknown)
        self._candidate.count_unknown(candidates, tokens.candidates, unknown)
        return ModelInput(context, candidates, tokens.context_values, tokens.candidate_values), unknown


def _token_or_none(read: Callable[[Any], str | None], value: Any) -> str | None:
    try:
        return read(value)
    except ValueError:
        return None
