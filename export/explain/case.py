"""The predictions that somebody asks about: the candidates of a request, or drawn ones."""

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
    id: str | int
    features: dict[str, Any]


class RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/score or /v1/explain. What is only about the server's answering is read and not used."""

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
    """One candidate in its context: one prediction."""

    id: str | int
    context: Features
    features: Features

    def of(self, side: Side) -> Features:
        return self.context if side == "context" else self.features


def request_cases(path: Path, candidate: str = ALL) -> list[Case]:
    """A request file's candidates of this id, or all of them.

    Raises:
        ValueError: for a file that is no request, with the JSON path, and for an id that no candidate has.
    """
    try:
        body = msgspec.json.decode(path.read_bytes(), type=RequestBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        way_out = "write the body of POST /v1/score: {context, candidates: [{id, features}]}"
        raise ValueError(f"{path}: {error}: {way_out}") from error
    cases = [Case(one.id, body.context, one.features) for one in body.candidates]
    chosen = [case for case in cases if candidate in (ALL, str(case.id))]
    if not chosen:
        ids = ", ".join(str(case.id) for case in cases[:20])
        raise ValueError(f"{path}: no candidate has the id {candidate!r}: its first ones are {ids}; or name {ALL!r}")
    return chosen


def drawn_cases(schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary], count: int) -> list[Case]:
    """From the golden requests, which hold no row of a log: those with the fewest missing and unknown values, of each
    one candidate. An id says the line of golden.jsonl.

    Raises:
        ValueError: for a count below 1 or above 300.
    """
    if not 1 <= count <= REQUESTS:
        raise ValueError(f"--golden {count}: there are {REQUESTS} golden requests: ask for 1 to {REQUESTS}")
    golden = draw_golden(schema, vocabularies)
    found: list[tuple[int, Case]] = []
    for line, (one, read) in enumerate(zip(golden, golden_inputs(schema, vocabularies, golden), strict=True), 1):
        lacking = _lacking(read.context_ids, read.context_values) + _lacking(read.candidate_ids, read.candidate_values)
        best = int(lacking.argmin())
        candidate = one.candidates[best]
        found.append((int(lacking[best]), Case(f"golden-{line}-{candidate.id}", one.context, candidate.features)))
    return [case for _, case in sorted(found, key=lambda pair: pair[0])[:count]]


def _lacking(ids: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.intp]:
    """By row, how many ids are unknown or missing, and how many numbers missing: those are 0, the mean."""
    lacking: NDArray[np.intp] = (ids <= MISSING).sum(1) + (values == 0).sum(1)
    return lacking
