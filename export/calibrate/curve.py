"""Fitting the curve: an increasing, piecewise linear function from corrected to calibrated logits.

All functions are deterministic. Legend: K knots, B blocks of rows with similar logits.
"""

import numpy as np
from scipy.optimize import brentq  # type: ignore[import-untyped]
from sklearn.isotonic import isotonic_regression
from sklearn.linear_model import LogisticRegression

from contract.calibration import MAX_KNOTS, MIN_SLOPE, sigmoid
from export.calibrate.rows import Floats, Rows

BLOCK_CLICKS = 100  # in each block, at least; the standard error of its click rate is then 10% at most
MIN_GAP = 0.02  # between the logits of two knots. Closer blocks cannot be told apart, and rounding would matter.
END_DISTANCE = 1.0  # from the outer blocks to the knots that determine the slopes of the ends, in the logit
MAX_LOGIT = 30.0  # for the mean prediction of a block. Beyond it, probabilities near 1 lose their digits.

Knots = tuple[tuple[float, float], ...]


def fit_platt(rows: Rows) -> Knots:
    """Return the line that maximizes the weighted likelihood (Platt scaling), as the knots of its two ends.

    Raises:
        ValueError: If the line does not increase, or the model separates clicks from non-clicks.
    """
    slope, intercept = platt_line(rows)
    ends = float(rows.logit.min()), float(rows.logit.max())
    return tuple((x, slope * x + intercept) for x in ends)


def platt_line(rows: Rows) -> tuple[float, float]:
    """Return the slope and the intercept of Platt scaling.

    Raises:
        ValueError: See fit_platt().
    """
    if float(np.ptp(rows.logit)) < MIN_GAP:
        raise ValueError(
            f"the model gives all {len(rows):,} rows almost the same probability, so there is no slope to fit. Train "
            "again: a model that has learned something distinguishes the rows."
        )
    clicked = rows.label > 0.5
    if rows.logit[clicked].min() > rows.logit[~clicked].max():
        raise ValueError(
            "the model separates all clicks from all non-clicks, so the slope has no bound. A field probably contains "
            "the label: run ctr-inspect."
        )
    mean, std = float(rows.logit.mean()), float(rows.logit.std())
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200)
    model.fit((rows.logit[:, None] - mean) / std, clicked, sample_weight=rows.weight)
    slope = float(model.coef_[0, 0]) / std
    intercept = float(model.intercept_[0]) - slope * mean
    if slope < MIN_SLOPE:
        relation = "falls as" if slope < 0 else "hardly depends on"
        predicted = "the prediction rises" if slope < 0 else "the prediction"
        raise ValueError(
            f"the click rate {relation} {predicted} (the slope of Platt scaling is {slope:.3f}; expected at least "
            f"{MIN_SLOPE:g}). No calibration can fix the order of the candidates. Check that the labels are not "
            "swapped and that the log belongs to this run, or train again."
        )
    return slope, intercept


def fit_isotonic(rows: Rows) -> Knots:
    """Return an isotonic regression with a minimum slope, as a piecewise linear function.

    The rows are pooled into blocks whose click rates increase (pool adjacent violators). Neighboring blocks are merged
    until each has enough clicks and non-clicks for a finite and reliable logit. A knot connects the mean prediction of
    a block with its click rate. The ends continue with the slope of Platt scaling, because the first and the last
    blocks are too few to determine a slope.

    Raises:
        ValueError: See fit_platt().
    """
    slope, _ = platt_line(rows)
    x, y, clicks = merged_blocks(rows)
    # A slope of at least MIN_SLOPE means that y - MIN_SLOPE * x does not decrease.
    y = isotonic_regression(y - MIN_SLOPE * x, sample_weight=clicks) + MIN_SLOPE * x
    x = np.concatenate([[x[0] - END_DISTANCE], x, [x[-1] + END_DISTANCE]])
    y = np.concatenate([[y[0] - END_DISTANCE * slope], y, [y[-1] + END_DISTANCE * slope]])
    return tuple(zip(x.tolist(), y.tolist(), strict=True))


def merged_blocks(rows: Rows) -> tuple[Floats, Floats, Floats]:
    """Return the blocks of an isotonic regression after merging.

    Returns:
        The logit of the mean prediction, ascending (B); the logit of the click rate, ascending (B); the clicks (B).
        B is small enough for MAX_KNOTS.
    """
    order = np.argsort(rows.logit, kind="stable")
    logit, label, weight = rows.logit[order], rows.label[order], rows.weight[order]
    # Rows with equal logits must get equal values, so they are one row with their mean label.
    starts = np.flatnonzero(np.r_[True, np.diff(logit) > 0])
    mass = np.add.reduceat(weight, starts)
    rate = isotonic_regression(np.add.reduceat(weight * label, starts) / mass, sample_weight=mass)
    firsts = starts[np.flatnonzero(np.r_[True, np.diff(rate) > 0])]
    columns = weight, weight * label, weight * sigmoid(logit.clip(-MAX_LOGIT, MAX_LOGIT)), label, 1 - label
    blocks = np.stack([np.add.reduceat(column, firsts) for column in columns], axis=1)
    merged = np.array(merge(blocks, max(BLOCK_CLICKS, -(-rows.clicks // (MAX_KNOTS - 2)))))
    return log_odds(merged[:, 2] / merged[:, 0]), log_odds(merged[:, 1] / merged[:, 0]), merged[:, 3]


def merge(blocks: Floats, least: int) -> list[Floats]:
    """Merge neighbors until each block has enough rows of both kinds and is far enough from the next one.

    Args:
        blocks: The weight, the weighted clicks, the weighted predictions, the clicks and the non-clicks of each block.
            Shape: (blocks, 5).
        least: The least number of clicks, and of non-clicks, in a block.
    """
    merged: list[Floats] = []
    current = np.zeros(blocks.shape[1])
    for block in blocks:
        current = current + block
        is_far = not merged or position(current) - position(merged[-1]) >= MIN_GAP
        if min(current[3], current[4]) >= least and is_far:
            merged.append(current)
            current = np.zeros(blocks.shape[1])
    if current[0]:  # the rest joins the last blocks until the distances are right again
        merged.append(current + merged.pop() if merged else current)
    while len(merged) > 1 and position(merged[-1]) - position(merged[-2]) < MIN_GAP:
        merged.append(merged.pop() + merged.pop())
    return merged


def position(block: Floats) -> float:
    """Return the logit of a block's mean prediction."""
    return float(log_odds(block[2] / block[0]))


def log_odds(probability: Floats | np.float64) -> Floats:
    """Return the logit of probabilities."""
    result: Floats = np.log(probability) - np.log1p(-probability)
    return result


def shifted(knots: Knots, shift: float) -> Knots:
    """Return a curve that is higher by a shift."""
    return tuple((x, y + shift) for x, y in knots)


def shift_to(logit: Floats, weight: Floats, clicks: float) -> float:
    """Return the number that must be added to all logits so that the predicted clicks are `clicks`.

    Args:
        logit: Calibrated logits, (rows).
        weight: The weight of each row, (rows).
        clicks: The weighted number of clicks, above 0 and below the sum of the weights.
    """
    target = float(log_odds(np.float64(clicks / weight.sum())))

    def excess(shift: float) -> float:
        return float(np.dot(weight, sigmoid(logit + shift))) / clicks - 1

    # The shift moves the least and the greatest logit to at most and at least the target.
    low, high = target - float(logit.max()) - 1e-9, target - float(logit.min()) + 1e-9
    root: float = brentq(excess, low, high, xtol=1e-14, rtol=1e-14, maxiter=500)
    return root
