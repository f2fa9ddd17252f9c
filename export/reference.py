"""Measuring the reference (contract/reference.py) on a run's prepared log, with the graph of the bundle.

Legend: M measured rows.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from contract.bundle import MODEL, OUTPUT
from contract.calibration import Calibrator
from contract.encode import ModelInput, join
from contract.reference import (
    BINS,
    Bins,
    CategoricalReference,
    NumericReference,
    Reference,
    bin_numbers,
    check_reference,
)
from contract.schema import FeatureSchema, Kind, Side
from contract.vocabulary import MISSING, UNKNOWN
from model.data.prepare.prepared import Prepared

SPLIT = "valid"
MIN_REQUESTS = 500  # Noise alone gives a PSI of about BINS / requests, which must be far below 0.1.
MAX_ROWS = 50_000  # evenly spaced in a larger split
RUN_ROWS = 1_024  # rows in one run of the graph


def measure_reference(folder: Path, prepared: Prepared, calibrator: Calibrator) -> Reference | None:
    """Return the reference of a bundle, or None if the validation set has too few rows.

    It needs MIN_REQUESTS requests. Rows with weight 0 are not measured.

    The validation set follows train in time, so it resembles the traffic that the model will see. Train does not: the
    vocabulary was built from it, so it has fewer unknown values than any later traffic.

    Args:
        folder: The folder with the graph MODEL.
        prepared: The log that the model was trained on.
        calibrator: The bundle's calibration.
    """
    if count_requests(prepared) < MIN_REQUESTS:
        return None
    total = prepared.facts.splits[SPLIT].rows
    rows = np.linspace(0, total - 1, min(MAX_ROWS, total)).round().astype(np.int64)
    weights = row_weights(prepared, rows)
    rows, weights = rows[weights > 0], weights[weights > 0]
    if not len(rows):
        return None
    all_ids, all_values, _ = prepared.split(SPLIT)
    ids, values = all_ids[rows], all_values[rows]
    reference = Reference(
        rows=len(rows),
        predicted=bins_of(predict(folder, prepared.schema, ids, values, calibrator), weights),
        numeric=numeric_references(prepared, values, weights),
        categorical=categorical_references(prepared.schema, ids, weights),
    )
    check_reference(reference, prepared.schema)
    return reference


def count_requests(prepared: Prepared) -> int:
    """Return the number of requests in the validation set. In a log without requests, each row counts as one."""
    requests = prepared.requests(SPLIT)
    return prepared.facts.splits[SPLIT].rows if requests is None else len(np.unique(requests))


def row_weights(prepared: Prepared, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the weight of each measured row. With the weights, the rows have the shares of the whole traffic.

    A log that keeps only some of its negatives has too many clicks, and its rows differ from the server's requests.
    """
    labels = prepared.split(SPLIT)[2][rows]
    stored = prepared.weights(SPLIT)
    weights = np.ones(len(rows)) if stored is None else stored[rows].astype(np.float64)
    return np.where(labels > 0, weights, weights / prepared.facts.data.negative_rate)


def predict(
    folder: Path,
    schema: FeatureSchema,
    ids: NDArray[np.int32],
    values: NDArray[np.float32],
    calibrator: Calibrator,
) -> NDArray[np.float64]:
    """Return the bundle's probability of each row, (M)."""
    session = onnxruntime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])
    parts = []
    for model_input in inputs_of(schema, ids, values):
        request_index = np.arange(len(model_input.candidate_ids), dtype=np.int64)
        (logit,) = session.run([OUTPUT], {**join([model_input]), "request_index": request_index})
        parts.append(calibrator.ctr(logit, model_input.context_ids, request_index))
    return np.concatenate(parts)


def inputs_of(schema: FeatureSchema, ids: NDArray[np.int32], values: NDArray[np.float32]) -> Iterator[ModelInput]:
    """Yield rows as inputs of the serving graph: each row is a request with one candidate."""

    def columns(kind: Kind, side: Side) -> list[int]:
        return [i for i, field in enumerate(schema.select(kind)) if field.side == side]

    for start in range(0, len(ids), RUN_ROWS):
        part_ids, part_values = ids[start : start + RUN_ROWS].astype(np.int64), values[start : start + RUN_ROWS]
        yield ModelInput(
            part_ids[:, columns("categorical", "context")],
            part_ids[:, columns("categorical", "candidate")],
            part_values[:, columns("numeric", "context")],
            part_values[:, columns("numeric", "candidate")],
        )


def numeric_references(
    prepared: Prepared, values: NDArray[np.float32], weights: NDArray[np.float64]
) -> dict[str, NumericReference]:
    """Return the reference of each numeric field.

    Args:
        prepared: The log.
        values: Normalized values. Shape: (M, numeric fields).
        weights: Shape: (M).
    """
    references = {}
    for field, column in zip(prepared.schema.select("numeric"), values.T, strict=True):
        if field.missing_vector:
            is_missing = np.isnan(column)
        else:  # ctr-prepare replaced missing numbers with 0. A number is rarely exactly the mean.
            is_missing = (column == 0) & (prepared.facts.missing.get(field.name, 0) > 0)
        missing = float(weights[is_missing].sum() / weights.sum())
        # If all values are missing, the bins have no meaning, and one bin has room for every number.
        present = Bins((), (1.0,)) if is_missing.all() else bins_of(column[~is_missing], weights[~is_missing])
        references[field.name] = NumericReference(present, missing)
    return references


def categorical_references(
    schema: FeatureSchema, ids: NDArray[np.int32], weights: NDArray[np.float64]
) -> dict[str, CategoricalReference]:
    """Return the reference of each categorical field. The arguments are those of numeric_references()."""
    return {
        field.name: CategoricalReference(
            unknown=float(weights[column == UNKNOWN].sum() / weights.sum()),
            missing=float(weights[column == MISSING].sum() / weights.sum()),
        )
        for field, column in zip(schema.select("categorical"), ids.T, strict=True)
    }


def bins_of(numbers: NDArray[np.floating], weights: NDArray[np.float64]) -> Bins:
    """Return up to BINS bins of about equal weight. Equal numbers are in the same bin.

    An edge lies halfway between two different numbers, so that rounding errors do not move a number to another bin.
    """
    distinct, place = np.unique(numbers.astype(np.float64), return_inverse=True)
    cumulative = np.cumsum(np.bincount(place, weights))
    last_of_bin = np.searchsorted(cumulative, cumulative[-1] * np.arange(1, BINS) / BINS)
    last_of_bin = last_of_bin[last_of_bin < len(distinct) - 1]
    edges = np.unique((distinct[last_of_bin] + distinct[last_of_bin + 1]) / 2)
    shares = np.bincount(bin_numbers(edges.tolist(), numbers), weights, len(edges) + 1) / weights.sum()
    return Bins(tuple(edges.tolist()), tuple(shares.tolist()))
