"""Measuring the reference on a request log, which has all candidates that a server scores, not only those shown.

Legend: R requests with N candidates in total.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.calibration import Calibrator
from contract.encode import Encoder, ModelInput, join
from contract.reader import BadFeature, Features
from contract.reference import Reference
from contract.request_log import LogLine
from contract.schema import FeatureSchema, Side
from contract.tokens import number_reader
from contract.vocabulary import Vocabulary
from export.reference import MIN_REQUESTS, SIDES, SideRows, ctr_of, open_session, reference_of

RUN_REQUESTS = 100  # in one run of the graph


@dataclass(frozen=True)
class Encoded:
    """A request as the server reads it.

    Attributes:
        model_input: The input of the graph, with the valid candidates.
        context: The values of the request.
        candidates: The values of the valid candidates.
        weights: How many candidates of the traffic each of them stands for.
    """

    model_input: ModelInput
    context: Features
    candidates: Sequence[Features]
    weights: Sequence[float]


def measure_logged(
    folder: Path,
    lines: Sequence[LogLine],
    schema: FeatureSchema,
    vocabularies: Mapping[str, Vocabulary],
    calibrator: Calibrator,
) -> Reference | None:
    """Return the reference of a bundle, or None if fewer than MIN_REQUESTS requests are valid for the model.

    A request counts once in the context fields, and each of its candidates with 1 / its inclusion probability in the
    candidate fields and in the probabilities, because the server counts in the same way.

    Args:
        folder: The folder with the graph MODEL.
        lines: Scored requests.
        schema: The model's fields.
        vocabularies: The vocabulary of each categorical field.
        calibrator: The bundle's calibration.
    """
    requests = list(encoded(lines, schema, vocabularies))
    if len(requests) < MIN_REQUESTS:
        return None
    session = open_session(folder)
    runs = [requests[start : start + RUN_REQUESTS] for start in range(0, len(requests), RUN_REQUESTS)]
    inputs = [join([request.model_input for request in run]) for run in runs]
    ctr = np.concatenate([ctr_of(session, one, calibrator) for one in inputs])
    weights: dict[Side, NDArray[np.float64]] = {
        "context": np.ones(len(requests)),
        "candidate": np.array([weight for request in requests for weight in request.weights], np.float64),
    }
    features: dict[Side, list[Features]] = {
        "context": [request.context for request in requests],
        "candidate": [candidate for request in requests for candidate in request.candidates],
    }
    sides: dict[Side, SideRows] = {}
    for side in SIDES:
        sides[side] = SideRows(
            ids=np.concatenate([getattr(request.model_input, f"{side}_ids") for request in requests]),
            values=np.concatenate([getattr(request.model_input, f"{side}_values") for request in requests]),
            is_missing=missing_numbers(schema, side, features[side]),
            weights=weights[side],
        )
    return reference_of(schema, sides, ctr)


def encoded(
    lines: Sequence[LogLine], schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary]
) -> Iterator[Encoded]:
    """Yield the requests that the model can read. Logged values of fields with pseudonyms are pseudonyms already."""
    encoder = Encoder(schema)
    for line in lines:
        context: dict[str, Any] = line.context or {}
        candidates = line.candidates or []
        try:
            tokens = encoder.tokens(context, [one.features for one in candidates], skip_bad=True)
        except BadFeature:
            continue
        if tokens.rows:
            valid = [candidates[row] for row in tokens.rows]
            weights = [1 / one.inclusion for one in valid]
            yield Encoded(encoder.ids(tokens, vocabularies)[0], context, [one.features for one in valid], weights)


def missing_numbers(schema: FeatureSchema, side: Side, rows: Sequence[Features]) -> NDArray[np.bool_]:
    """Return whether each number is missing. Shape: (rows, numeric fields of the side)."""
    fields = schema.select("numeric", side)
    is_missing = np.empty((len(rows), len(fields)), np.bool_)
    for column, field in enumerate(fields):
        read = number_reader(field)
        is_missing[:, column] = np.isnan([read(row.get(field.reads)) for row in rows])
    return is_missing
