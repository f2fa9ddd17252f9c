"""Measuring a calibration on rows that it was not fitted to: before and after."""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.calibration import Calibration, Calibrator, FittedCalibration, sigmoid
from contract.schema import FeatureSchema
from export.calibrate.rows import Floats, Rows
from export.calibrate.statistics import Ratio, measure_ratio
from model.training.metrics import Bin, equal_mass_bins, evaluate, reliability

DECILES = 10


class Segment(msgspec.Struct, frozen=True):
    """Predicted and observed clicks of a segment."""

    id: int
    value: str | None
    ratio: Ratio


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """The quality of probabilities.

    Attributes:
        auc: The AUC.
        logloss: The mean over the rows.
        normalized_entropy: The logloss divided by that of the click rate.
        calibration_error: The expected calibration error.
        overall: Predicted / observed of all rows.
        deciles: The same by decile of the prediction before calibration, lowest first. Fewer than ten if many
            predictions are equal.
        segments: The same by segment, in ascending order of the ids.
        cold: The same for candidates with a value that the model does not know. None without such rows.
        bins: The points of the reliability curve.
    """

    auc: float
    logloss: float
    normalized_entropy: float
    calibration_error: float
    overall: Ratio
    deciles: list[Ratio]
    segments: list[Segment]
    cold: Ratio | None
    bins: list[Bin]


def judge(
    rows: Rows, fitted: FittedCalibration, schema: FeatureSchema, values: Mapping[int, str | None]
) -> tuple[Quality, Quality]:
    """Return the quality before and after calibration.

    Args:
        rows: Rows that the calibration was not fitted to.
        fitted: The calibration.
        schema: The model's fields.
        values: The tokens of the segments, by id.

    Raises:
        ValueError: If all labels are equal.
    """
    rows = rows.select(rows.importance > 0)
    decile = equal_mass_bins(rows.logit, rows.weight, DECILES)
    before, after = sigmoid(rows.logit), calibrated_ctr(rows, fitted, schema)
    return measure(rows, before, decile, values), measure(rows, after, decile, values)


def calibrated_ctr(rows: Rows, fitted: FittedCalibration, schema: FeatureSchema) -> Floats:
    """Return the probabilities that the server computes, (rows). The correction has already been applied."""
    names = [field.name for field in schema.select("categorical", "context")]
    # One request for each id: the other fields have no effect.
    ids, index = np.zeros(1, np.int64), np.zeros(len(rows), np.int64)
    if rows.segment is not None:
        ids, index = np.unique(rows.segment, return_inverse=True)
    context_ids = np.zeros((len(ids), len(names)), np.int64)
    if fitted.segment_field is not None:
        context_ids[:, names.index(fitted.segment_field)] = ids
    return Calibrator(Calibration(), fitted, schema).ctr(rows.logit, context_ids, index)


def measure(rows: Rows, ctr: Floats, decile: NDArray[np.int64], values: Mapping[int, str | None]) -> Quality:
    """Return the quality of predictions.

    Args:
        rows: The rows.
        ctr: The predictions, (rows).
        decile: The decile of each row, (rows).
        values: The tokens of the segments, by id.
    """
    metrics = evaluate(rows.label, ctr, rows.weight)
    assert metrics.normalized_entropy is not None
    assert metrics.calibration_error is not None
    segments = []
    if rows.segment is not None:
        segments = [Segment(each, values[each], part) for each, part in ratios(rows, ctr, rows.segment).items()]
    return Quality(
        auc=metrics.auc,
        logloss=metrics.logloss,
        normalized_entropy=metrics.normalized_entropy,
        calibration_error=metrics.calibration_error,
        overall=measure_ratio(rows, ctr),
        deciles=[*ratios(rows, ctr, decile).values()],
        segments=segments,
        cold=ratios(rows, ctr, rows.cold.astype(np.int64)).get(1),
        bins=reliability(rows.label, ctr, rows.weight),
    )


def ratios(rows: Rows, ctr: Floats, group: NDArray[np.int64]) -> dict[int, Ratio]:
    """Return predicted / observed of each group of rows, in ascending order of the groups.

    Args:
        rows: The rows.
        ctr: The predictions, (rows).
        group: The group of each row, (rows).
    """
    order = np.argsort(group, kind="stable")
    found, starts = np.unique(group[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {
        int(each): measure_ratio(rows.select(part), ctr[part]) for each, part in zip(found.tolist(), parts, strict=True)
    }
