"""Build an example request for a bundle. Every server that serves the bundle accepts it, even with CTR_STRICT."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET

from contract.bundle import Bundle
from contract.golden import GoldenRequest
from contract.schema import Field, Side
from contract.tokens import number_in_bucket, tokenizer
from contract.vocabulary import UNKNOWN, Vocabulary

MAX_CANDIDATES = 3
TIMEOUT_MS = 1000  # long, because a person rather than an auction waits for the response


def example_request(bundle: Bundle, golden: Sequence[GoldenRequest], max_candidates: int) -> dict[str, Any]:
    """Return the golden request with the most known values. Known values replace its unknown and missing ones.

    Args:
        bundle: The bundle whose fields and vocabularies the request must fit.
        golden: Requests to choose from, which also provide the known values.
        max_candidates: Maximum number of candidates that the server accepts. The example has at most three.
    """
    count = min(MAX_CANDIDATES, max_candidates)
    values = KnownValues(bundle, golden)
    best = max(golden, key=lambda request: (len(request.candidates[:count]), values.count(request, count)))
    return {
        "context": values.fill("context", best.context, 0),
        "candidates": [
            {"id": candidate.id, "features": values.fill("candidate", candidate.features, number)}
            for number, candidate in enumerate(best.candidates[:count])
        ],
        "timeout_ms": TIMEOUT_MS,
    }


class KnownValues:
    """For each field, the values that are neither missing nor unknown to the bundle."""

    def __init__(self, bundle: Bundle, golden: Sequence[GoldenRequest]) -> None:
        self._vocabularies = bundle.vocabularies
        fields = bundle.schema.fields
        self._fields = {side: [field for field in fields if field.side == side] for side in ("context", "candidate")}
        rows: dict[Side, list[Mapping[str, Any]]] = {
            "context": [request.context for request in golden],
            "candidate": [candidate.features for request in golden for candidate in request.candidates],
        }
        self._known = {
            field.name: [row[field.name] for row in rows[field.side] if self.is_known(field, row.get(field.name))]
            or [placeholder(field, bundle.vocabularies.get(field.name))]
            for field in fields
        }

    def is_known(self, field: Field, value: Any) -> bool:
        """Return whether the value is neither missing nor unknown."""
        if field.kind == "numeric":
            return value is not None
        token, vocabulary = tokenizer(field)(value), self._vocabularies.get(field.name)
        # If only Redis has the vocabulary, there is no way to tell here whether a token is known.
        return token is not None and (vocabulary is None or vocabulary(token) != UNKNOWN)

    def count(self, request: GoldenRequest, candidates: int) -> int:
        """Return how many values of the context and the first candidates are known."""
        rows: list[tuple[Side, Mapping[str, Any]]] = [("context", request.context)]
        rows += [("candidate", candidate.features) for candidate in request.candidates[:candidates]]
        return sum(
            self.is_known(field, features.get(field.name)) for side, features in rows for field in self._fields[side]
        )

    def fill(self, side: Side, features: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return the fields of a side, with known values. `number` selects the replacement for an unknown value."""
        filled = {}
        for field in self._fields[side]:
            value, known = features.get(field.name), self._known[field.name]
            filled[field.name] = value if self.is_known(field, value) else known[number % len(known)]
        return filled


def placeholder(field: Field, vocabulary: Vocabulary | None) -> Any:
    """Return a value for a field that has no known value in any golden request."""
    if field.kind == "numeric":
        return field.mean
    if field.transform is not UNSET:
        return 1.0 if vocabulary is None else next((number_in_bucket(token) for token, _ in vocabulary.items()), 1.0)
    return "unknown" if vocabulary is None else next((token for token, _ in vocabulary.items()), "unknown")
