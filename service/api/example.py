"""An example request for a bundle, such as every server that serves it accepts: a strict one, too."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET

from contract.bundle import Bundle
from contract.golden import GoldenRequest
from contract.schema import Field, Side
from contract.tokens import number_in_bucket, tokenizer
from contract.vocabulary import UNKNOWN

CANDIDATES = 3
TIMEOUT_MS = 1000  # a person waits, not an auction


def example_request(bundle: Bundle, golden: Sequence[GoldenRequest], max_candidates: int) -> dict[str, Any]:
    """A golden request's first candidates; what is missing or unknown there is taken from other golden requests."""
    most = min(CANDIDATES, max_candidates)
    example = _Example(bundle, golden)
    one = max(golden, key=lambda request: (len(request.candidates[:most]), example.known_values(request, most)))
    return {
        "context": example.filled("context", one.context, 0),
        "candidates": [
            {"id": candidate.id, "features": example.filled("candidate", candidate.features, number)}
            for number, candidate in enumerate(one.candidates[:most])
        ],
        "timeout_ms": TIMEOUT_MS,
    }


class _Example:
    def __init__(self, bundle: Bundle, golden: Sequence[GoldenRequest]) -> None:
        self._bundle = bundle
        rows: dict[Side, list[Mapping[str, Any]]] = {
            "context": [one.context for one in golden],
            "candidate": [candidate.features for one in golden for candidate in one.candidates],
        }
        self._substitutes = {
            field.name: [row[field.name] for row in rows[field.side] if self._is_known(field, row.get(field.name))]
            or [self._made_up(field)]
            for field in bundle.schema.fields
        }

    def filled(self, side: Side, features: Mapping[str, Any], number: int) -> dict[str, Any]:
        """The side's fields, each with a known value; `number` tells apart what has to be filled in."""
        return {field.name: self._value(field, features, number) for field in self._fields(side)}

    def known_values(self, request: GoldenRequest, candidates: int) -> int:
        rows: list[tuple[Side, Mapping[str, Any]]] = [("context", request.context)]
        rows += [("candidate", candidate.features) for candidate in request.candidates[:candidates]]
        return sum(self._is_known(f, features.get(f.name)) for side, features in rows for f in self._fields(side))

    def _fields(self, side: Side) -> list[Field]:
        return [field for field in self._bundle.schema.fields if field.side == side]

    def _value(self, field: Field, features: Mapping[str, Any], number: int) -> Any:
        value = features.get(field.name)
        substitutes = self._substitutes[field.name]
        return value if self._is_known(field, value) else substitutes[number % len(substitutes)]

    def _is_known(self, field: Field, value: Any) -> bool:
        if field.kind == "numeric":
            return value is not None
        known, vocabulary = tokenizer(field)(value), self._bundle.vocabularies.get(field.name)
        # A vocabulary that Redis alone has is not asked for an example.
        return known is not None and (vocabulary is None or vocabulary(known) != UNKNOWN)

    def _made_up(self, field: Field) -> Any:
        if field.kind == "numeric":
            return field.mean
        vocabulary = self._bundle.vocabularies.get(field.name)
        if field.transform is not UNSET:
            return 1.0 if vocabulary is None else next((number_in_bucket(t) for t, _ in vocabulary.items()), 1.0)
        return "unknown" if vocabulary is None else next((known for known, _ in vocabulary.items()), "unknown")
