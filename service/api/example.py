"""Build an example request for a bundle. Every server that serves the bundle accepts it, even with CTR_STRICT."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from contract.bundle import Bundle
from contract.golden import GoldenRequest
from contract.raw_values import Source, sources
from contract.schema import Side

SIDES: tuple[Side, Side] = ("context", "candidate")
MAX_CANDIDATES = 3
MAX_TOKENS = 100  # for each field; enough for all hours, weekdays and days of the month
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
    """For each name in requests, values that are neither missing nor unknown to the bundle."""

    def __init__(self, bundle: Bundle, golden: Sequence[GoldenRequest]) -> None:
        self._vocabularies = bundle.vocabularies
        tokens = {
            field.name: [token for token, _ in islice(self._vocabularies[field.name].items(), MAX_TOKENS)]
            if field.name in self._vocabularies
            else []
            for field in bundle.schema.select("categorical")
        }
        self._sources = {
            side: sources([field for field in bundle.schema.fields if field.side == side], tokens) for side in SIDES
        }
        rows: dict[Side, list[Mapping[str, Any]]] = {
            "context": [request.context for request in golden],
            "candidate": [candidate.features for request in golden for candidate in request.candidates],
        }
        self._known = {
            (side, source.name): [row[source.name] for row in rows[side] if self.is_known(source, row.get(source.name))]
            or [source.example()]
            for side in SIDES
            for source in self._sources[side]
        }

    def is_known(self, source: Source, value: Any) -> bool:
        """Return whether the value is neither missing nor unknown.

        If the vocabulary is only in Redis, every token counts as known.
        """
        return source.is_known(value, self._vocabularies)

    def count(self, request: GoldenRequest, candidates: int) -> int:
        """Return how many values of the context and the first candidates are known."""
        rows: list[tuple[Side, Mapping[str, Any]]] = [("context", request.context)]
        rows += [("candidate", candidate.features) for candidate in request.candidates[:candidates]]
        return sum(
            self.is_known(source, features.get(source.name))
            for side, features in rows
            for source in self._sources[side]
        )

    def fill(self, side: Side, features: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return a known value for each name of a side. `number` selects the replacement for an unknown value."""
        filled = {}
        for source in self._sources[side]:
            value, known = features.get(source.name), self._known[side, source.name]
            filled[source.name] = value if self.is_known(source, value) else known[number % len(known)]
        return filled
