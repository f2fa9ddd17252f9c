"""Golden requests: requests with the answers that a bundle's model gave when it was exported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from contract.encode import Encoder, ModelInput
from contract.reader import Lookup

TOLERANCE = 1e-5  # Correct answers may differ by this much, because float32 sums depend on the order of addition.


class GoldenCandidate(msgspec.Struct, frozen=True):
    id: str
    features: dict[str, Any]


class GoldenRequest(msgspec.Struct, frozen=True):
    """A request as a client sends it, and the probability of each of its candidates."""

    context: dict[str, Any]
    candidates: list[GoldenCandidate]
    ctr: list[float]


def read_golden(path: Path) -> list[GoldenRequest]:
    """Read golden requests from a file.

    Raises:
        ValueError: There is no request, or a line is not a golden request, has no candidates, or does not have one
            answer for each candidate.
    """
    try:
        golden = msgspec.json.Decoder(GoldenRequest).decode_lines(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}: export the run again") from error
    if not golden:
        raise ValueError(f"{path.name} has no requests: export the run again")
    for line, request in enumerate(golden, 1):
        candidates, answers = len(request.candidates), len(request.ctr)
        if candidates != answers or not candidates:
            raise ValueError(
                f"{path.name}:{line}: {candidates} candidates, {answers} ctr values; expected at least one candidate "
                "and one ctr value for each: export the run again"
            )
    return golden


def write_golden(golden: Sequence[GoldenRequest], path: Path) -> None:
    path.write_bytes(msgspec.json.Encoder().encode_lines(golden))


def golden_input(encoder: Encoder, request: GoldenRequest, vocabularies: Lookup) -> ModelInput:
    """Encode a golden request as the service does.

    Args:
        encoder: An encoder that is not strict, because a tenth of the golden values are missing.
        request: The golden request.
        vocabularies: The bundle's vocabularies.
    """
    tokens = encoder.tokens(request.context, [candidate.features for candidate in request.candidates])
    return encoder.ids(tokens, vocabularies)[0]


def largest_difference(expected: Sequence[float], answered: Sequence[float]) -> float:
    """Return the largest difference between the probabilities of two answers.

    It is infinite if the answers have different numbers of candidates, or if a probability is NaN.
    """
    if len(expected) != len(answered):
        return float("inf")
    differences = [abs(a - b) for a, b in zip(expected, answered, strict=True)]
    # `not d <= 1` is also true for NaN, which max() could drop.
    return float("inf") if any(not d <= 1 for d in differences) else max(differences, default=0.0)
