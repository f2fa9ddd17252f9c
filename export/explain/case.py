"""The predictions to explain: candidates of a request or of golden requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from contract.reader import Features
from contract.schema import FeatureSchema, Side
from contract.vocabulary import MISSING, Vocabulary
from export.golden import REQUESTS, draw_golden, golden_inputs

ALL = "all"


class Candidate(msgspec.Struct, frozen=True):
    """A candidate of a request."""

    id: str | int
    features: dict[str, Any]


class RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/score or /v1/explain. timeout_ms and all later keys are used only by the server."""

    context: dict[str, Any]
    candidates: Annotated[list[Candidate], Meta(min_length=1)]
    timeout_ms: Any = None
    on_bad_candidate: Any = None
    top_k: Any = None
    cascade: Any = None
    pairs: Any = None
    attention: Any = None


@dataclass(frozen=True)
class Case:
    """One prediction: a candidate in its context."""

    id: str | int
    context: Features
    features: Features

    def of(self, side: Side) -> Features:
        """Return the features of one side."""
        return self.context if side == "context" else self.features


def request_cases(path: Path, candidate: str = ALL) -> list[Case]:
    """Return the candidates of a request file.

    Args:
        path: A file with the body of a POST /v1/score request.
        candidate: The id of a candidate, or "all".

    Raises:
        ValueError: If the file is not a request, or no candidate has this id.
    """
    try:
        body = msgspec.json.decode(path.read_bytes(), type=RequestBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        expected = "Expected the body of POST /v1/score: {context, candidates: [{id, features}]}."
        raise ValueError(f"{path}: {error}. {expected}") from error
    cases = [Case(c.id, body.context, c.features) for c in body.candidates]
    chosen = [case for case in cases if candidate in (ALL, str(case.id))]
    if not chosen:
        ids = ", ".join(str(case.id) for case in cases[:20])
        raise ValueError(
            f"{path}: no candidate has the id {candidate!r}. The first ids are {ids}. {ALL!r} selects all."
        )
    return chosen


def drawn_cases(schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary], count: int) -> list[Case]:
    """Return one candidate of each of the `count` golden requests with the fewest missing and unknown values.

    Golden requests do not contain rows of a log. The id of a case includes the line number in golden.jsonl.

    Raises:
        ValueError: If `count` is less than 1 or greater than 300.
    """
    if not 1 <= count <= REQUESTS:
        raise ValueError(
            f"--golden {count}: there are {REQUESTS} golden requests. Choose a number from 1 to {REQUESTS}."
        )
    golden = draw_golden(schema, vocabularies)
    cases: list[tuple[int, Case]] = []
    for line, (request, read) in enumerate(zip(golden, golden_inputs(schema, vocabularies, golden), strict=True), 1):
        absent = count_absent(read.context_ids, read.context_values)
        absent = absent + count_absent(read.candidate_ids, read.candidate_values)
        best = int(absent.argmin())
        candidate = request.candidates[best]
        cases.append((int(absent[best]), Case(f"golden-{line}-{candidate.id}", request.context, candidate.features)))
    return [case for _, case in sorted(cases, key=lambda pair: pair[0])[:count]]


def count_absent(ids: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the number of unknown or missing values in each row. A missing number is NaN, or 0, which is the mean."""
    absent: NDArray[np.intp] = (ids <= MISSING).sum(1) + ((values == 0) | np.isnan(values)).sum(1)
    return absent
