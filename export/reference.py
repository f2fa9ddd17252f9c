"""Measuring the reference (contract/reference.py) on a run's prepared log, with the graph of the bundle.

export/logged_reference.py measures it on a request log instead.

Legend: M measured rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
SIDES: tuple[Side, ...] = ("context", "candidate")
MIN_REQUESTS = 500  # Noise alone gives a PSI of about BINS / requests, which must be far below 0.1.
MAX_ROWS = 50_000  # evenly spaced in a larger split
RUN_ROWS = 1_024  # rows in one run of the graph


@dataclass(frozen=True)
class SideRows:
    """The measured rows of one side of the requests.

    Attributes:
        ids: Shape: (M, categorical fields of the side).
        values: Normalized numbers. Shape: (M, numeric fields of the side).
        is_missing: Whether each number is missing. Shape: (M, numeric fields of the side).
        weights: How much each row counts. Shape: (M).
    """

    ids: NDArray[np.integer]
    values: NDArray[np.float32]
    is_missing: NDArray[np.bool_]
    weights: NDArray[np.float64]


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
    weights = row_weights(prepared)
    rows = rows[weights[rows] > 0]
    if not len(rows):
        return None
    all_ids, all_values, _ = prepared.split(SPLIT)
    ids, values = all_ids[rows], all_values[rows]
    of_side = {"context": context_weights(prepared, weights)[rows], "candidate": weights[rows]}
    is_missing = missing_numbers(prepared, values)
    schema = prepared.schema
    sides: dict[Side, SideRows] = {}
    for side in SIDES:
        numeric = columns_of(schema, "numeric", side)
        categorical = columns_of(schema, "categorical", side)
        sides[side] = SideRows(ids[:, categorical], values[:, numeric], is_missing[:, numeric], of_side[side])
    return reference_of(schema, sides, predict(folder, schema, ids, values, calibrator))


def reference_of(schema: FeatureSchema, sides: Mapping[Side, SideRows], ctr: NDArray[np.float64]) -> Reference:
    """Return the reference of measured rows.

    Args:
        schema: The model's fields.
        sides: The rows of both sides.
        ctr: The probability of each row of the candidates.
    """
    numeric: dict[str, NumericReference] = {}
    categorical: dict[str, CategoricalReference] = {}
    for side, rows in sides.items():
        numeric |= numeric_references(schema, side, rows)
        categorical |= categorical_references(schema, side, rows)
    reference = Reference(
        rows=len(ctr),
        predicted=bins_of(ctr, sides["candidate"].weights),
        numeric={field.name: numeric[field.name] for field in schema.select("numeric")},
        categorical={field.name: categorical[field.name] for field in schema.select("categorical")},
    )
    check_reference(reference, schema)
    return reference


def count_requests(prepared: Prepared) -> int:
    """Return the number of requests in the validation set. In a log without requests, each row counts as one."""
    requests = prepared.requests(SPLIT)
    return prepared.facts.splits[SPLIT].rows if requests is None else len(np.unique(requests))


def row_weights(prepared: Prepared) -> NDArray[np.float64]:
    """Return the weight of each row of the validation set. With it, the rows have the shares of the whole traffic.

    A log that keeps only some of its negatives has too many clicks, and its rows differ from the server's requests.
    """
    labels = prepared.split(SPLIT)[2]
    stored = prepared.weights(SPLIT)
    weights = np.ones(len(labels)) if stored is None else stored.astype(np.float64)
    return np.where(labels > 0, weights, weights / prepared.facts.data.negative_rate)


def context_weights(prepared: Prepared, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of each row's context: those of a request add up to 1, because the server counts it once.

    Args:
        prepared: The log. If it has no requests, each row is one, with its own weight.
        weights: The result of row_weights().
    """
    requests = prepared.requests(SPLIT)
    if requests is None:
        return weights
    _, place = np.unique(requests, return_inverse=True)
    totals = np.bincount(place, weights).astype(np.float64)[place]
    return np.divide(weights, totals, out=np.zeros(len(weights)), where=totals > 0)


def missing_numbers(prepared: Prepared, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return whether each number is missing. The shape stays (M, numeric fields)."""
    is_missing = np.isnan(values)
    for column, field in enumerate(prepared.schema.select("numeric")):
        # ctr-prepare replaced missing numbers with 0. A number is rarely exactly the mean.
        if not field.missing_vector and prepared.facts.missing.get(field.name, 0) > 0:
            is_missing[:, column] = values[:, column] == 0
    return is_missing


def columns_of(schema: FeatureSchema, kind: Kind, side: Side) -> list[int]:
    """Return the columns of a side among all fields of a kind."""
    return [column for column, field in enumerate(schema.select(kind)) if field.side == side]


def predict(
    folder: Path,
    schema: FeatureSchema,
    ids: NDArray[np.int32],
    values: NDArray[np.float32],
    calibrator: Calibrator,
) -> NDArray[np.float64]:
    """Return the bundle's probability of each row, (M)."""
    session = open_session(folder)
    parts = []
    for model_input in inputs_of(schema, ids, values):
        request_index = np.arange(len(model_input.candidate_ids), dtype=np.int64)
        parts.append(ctr_of(session, {**join([model_input]), "request_index": request_index}, calibrator))
    return np.concatenate(parts)


def open_session(folder: Path) -> onnxruntime.InferenceSession:
    """Return the session of a bundle's graph MODEL."""
    return onnxruntime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])


def ctr_of(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[np.generic]], calibrator: Calibrator
) -> NDArray[np.float64]:
    """Return the probability of each candidate in the inputs of one run."""
    (logit,) = session.run([OUTPUT], dict(inputs))
    return calibrator.ctr(logit, inputs["context_ids"], inputs["request_index"])


def inputs_of(schema: FeatureSchema, ids: NDArray[np.int32], values: NDArray[np.float32]) -> Iterator[ModelInput]:
    """Yield rows as inputs of the serving graph: each row is a request with one candidate."""
    for start in range(0, len(ids), RUN_ROWS):
        part_ids, part_values = ids[start : start + RUN_ROWS].astype(np.int64), values[start : start + RUN_ROWS]
        yield ModelInput(
            part_ids[:, columns_of(schema, "categorical", "context")],
            part_ids[:, columns_of(schema, "categorical", "candidate")],
            part_values[:, columns_of(schema, "numeric", "context")],
            part_values[:, columns_of(schema, "numeric", "candidate")],
        )


def numeric_references(schema: FeatureSchema, side: Side, rows: SideRows) -> dict[str, NumericReference]:
    """Return the reference of each numeric field of a side."""
    references = {}
    weights = rows.weights
    fields = schema.select("numeric", side)
    for field, column, is_missing in zip(fields, rows.values.T, rows.is_missing.T, strict=True):
        missing = float(weights[is_missing].sum() / weights.sum())
        # If all values are missing, the bins have no meaning, and one bin has room for every number.
        present = Bins((), (1.0,)) if is_missing.all() else bins_of(column[~is_missing], weights[~is_missing])
        references[field.name] = NumericReference(present, missing)
    return references


def categorical_references(schema: FeatureSchema, side: Side, rows: SideRows) -> dict[str, CategoricalReference]:
    """Return the reference of each categorical field of a side."""
    weights = rows.weights
    return {
        field.name: CategoricalReference(
            unknown=float(weights[column == UNKNOWN].sum() / weights.sum()),
            missing=float(weights[column == MISSING].sum() / weights.sum()),
        )
        for field, column in zip(schema.select("categorical", side), rows.ids.T, strict=True)
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
