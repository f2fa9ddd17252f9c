"""Golden requests: requests with the answers that a bundle's model gave when it was exported."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from contract.encode import Encoder, ModelInput
from contract.reader import Lookup

# Correct answers may differ by this much, because float32 sums depend on the order of addition. Both limits apply: the
# first is too loose if clicks are rare, and the second is too loose if clicks are frequent.
TOLERANCE = 1e-5
RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Difference:
    """The largest differences between two lists of probabilities.

    Attributes:
        absolute: The largest difference.
        relative: The largest difference relative to the expected probability. It may belong to a different candidate.
    """

    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.absolute:.3g} ({self.relative:.2g} of the probability)"

    @property
    def is_tolerated(self) -> bool:
        """Whether the differences are small enough for both answers to be correct."""
        return self.absolute <= TOLERANCE and self.relative <= RELATIVE_TOLERANCE


TOLERATED = f"{Difference(TOLERANCE, RELATIVE_TOLERANCE)}"


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


def largest_difference(expected: Sequence[float], answered: Sequence[float]) -> Difference:
    """Return the largest differences between the probabilities of two answers.

    They are infinite if the answers have different numbers of candidates, or if a probability is NaN.
    """
    if len(expected) != len(answered):
        return Difference(math.inf, math.inf)
    return max_difference(
        Difference(abs(a - b), abs(a - b) / a if a else math.inf if b else 0.0)
        for a, b in zip(expected, answered, strict=True)
    )


def max_difference(differences: Iterable[Difference]) -> Difference:
    """Return the largest absolute and the largest relative difference. NaN counts as infinite."""
    absolute = relative = 0.0
    for difference in differences:
        # `not d <= 1` is also true for NaN, which max() could drop.
        absolute = max(absolute, math.inf if not difference.absolute <= 1 else difference.absolute)
        relative = max(relative, math.inf if math.isnan(difference.relative) else difference.relative)
    return Difference(absolute, relative)
