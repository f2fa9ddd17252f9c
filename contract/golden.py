"""Golden requests: what a bundle's model answered when it was exported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from contract.encode import Encoder, ModelInput
from contract.reader import Lookup

TOLERANCE = 1e-5  # between two right answers: float32 in another order


class GoldenCandidate(msgspec.Struct, frozen=True):
    id: str
    features: dict[str, Any]


class GoldenRequest(msgspec.Struct, frozen=True):
    """A request as it goes over the wire, and the probability of each of its candidates."""

    context: dict[str, Any]
    candidates: list[GoldenCandidate]
    ctr: list[float]


def read_golden(path: Path) -> list[GoldenRequest]:
    """Raises ValueError for a line that is no golden request, has no candidate, or another number of answers."""
    try:
        golden = msgspec.json.Decoder(GoldenRequest).decode_lines(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}: export the run again") from error
    if not golden:
        raise ValueError(f"{path.name}: has no request: export the run again")
    for line, request in enumerate(golden, 1):
        candidates, answers = len(request.candidates), len(request.ctr)
        if candidates != answers or not candidates:
            raise ValueError(
                f"{path.name}, line {line}: {candidates} candidates, {answers} ctr: "
                "there must be one or more, and as many of each; export the run again"
            )
    return golden


def write_golden(golden: Sequence[GoldenRequest], path: Path) -> None:
    path.write_bytes(msgspec.json.Encoder().encode_lines(golden))


def golden_input(encoder: Encoder, one: GoldenRequest, vocabularies: Lookup) -> ModelInput:
    """A golden request as the service encodes it. encoder: not strict, for a tenth of the golden values is missing."""
    tokens = encoder.tokens(one.context, [candidate.features for candidate in one.candidates])
    return encoder.ids(tokens, vocabularies)[0]


def largest_difference(expected: Sequence[float], answered: Sequence[float]) -> float:
    """The largest distance between two answers; infinite when one has other numbers of candidates, or no number."""
    if len(expected) != len(answered):
        return float("inf")
    differences = [abs(a - b) for a, b in zip(expected, answered, strict=True)]
    # `not <=` also holds for NaN, which max() would lose.
    return float("inf") if any(not d <= 1 for d in differences) else max(differences, default=0.0)
