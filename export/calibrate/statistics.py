"""Predicted and observed clicks: their ratio, its interval, and how much information they contain."""

import msgspec
import numpy as np

from export.calibrate.rows import Floats, Rows
from model.poisson import poisson_interval

CONFIDENCE = 0.95


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted and observed clicks of a group of rows.

    Attributes:
        rows: The number of rows.
        clicks: The number of their clicks.
        predicted: The mean prediction in the whole traffic.
        observed: The click rate in the whole traffic.
        ratio: predicted / observed, which is 1 for a calibrated model. None without clicks.
        low: The lower end of its 95% interval.
        high: The upper end. None without clicks.
    """

    rows: int
    clicks: int
    predicted: float
    observed: float
    ratio: float | None
    low: float
    high: float | None


def measure_ratio(rows: Rows, ctr: Floats) -> Ratio:
    """Return predicted / observed with its interval.

    The number of clicks has a Poisson distribution, whose exact interval (Garwood 1936) gives that of the ratio. In a
    weighted or downsampled log, the interval is that of as many clicks as have the same relative variance.

    Args:
        rows: At least one row.
        ctr: Their predictions, (rows).
    """
    weight, clicked = rows.weight, rows.label > 0.5
    predicted, observed, mass = float(np.dot(weight, ctr)), float(rows.importance[clicked].sum()), float(weight.sum())
    effective, unit = 0.0, float(rows.importance.mean())
    if observed:
        relative_variance = float(np.square(rows.importance[clicked]).sum()) / observed**2
        effective = 1 / (relative_variance + sampling_variance(rows, ctr))
        unit = observed / effective
    least, most = map(float, poisson_interval(effective, CONFIDENCE))
    return Ratio(
        rows=len(rows),
        clicks=rows.clicks,
        predicted=predicted / mass,
        observed=observed / mass,
        ratio=predicted / observed if observed else None,
        low=predicted / (most * unit),
        high=predicted / (least * unit) if least else None,
    )


def effective_clicks(rows: Rows, ctr: Floats) -> float:
    """Return the information about predicted / observed that rows contain, in clicks of an unweighted log.

    The variance of the logarithm of the ratio is 1 / n for n expected clicks. Weights and a downsampled log add to it.
    The expected clicks are used instead of the observed ones, so that a group does not count more because its clicks
    are many by chance.

    Args:
        rows: At least one row.
        ctr: Their predictions, (rows).
    """
    weight = rows.weight
    predicted = float(np.dot(weight, ctr))
    relative_variance = float(np.dot(weight * rows.importance, ctr)) / predicted**2
    return 1 / (relative_variance + sampling_variance(rows, ctr))


def sampling_variance(rows: Rows, ctr: Floats) -> float:
    """Return the relative variance of the predicted clicks that comes from keeping only a share of the negatives."""
    if rows.negative_rate == 1:
        return 0.0
    weight, kept = rows.weight, rows.label < 0.5
    variance = float(np.square(weight[kept] * ctr[kept]).sum()) * (1 - rows.negative_rate)
    return variance / float(np.dot(weight, ctr)) ** 2
