"""Fitting a calibration: the curve, then the shifts of the segments, then a last shift of the curve."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contract.calibration import MAX_SEGMENTS, SegmentShift, sigmoid
from export.calibrate.curve import Knots, fit_isotonic, fit_platt, shift_to, shifted
from export.calibrate.rows import Floats, Rows
from export.calibrate.statistics import effective_clicks

Method = Literal["platt", "isotonic"]

MIN_CLICKS = 100
ISOTONIC_CLICKS = 10_000
# A segment's shift is shrunk as if this many further clicks had agreed with the curve. So the standard error of a shift
# is at most 5%, which is what ctr-gate tolerates in a segment. With 1,000, a segment with 2,500 clicks would keep 29%
# of its error, which ctr-gate would find.
PRIOR_CLICKS = 100.0


class TooFewClicksError(ValueError):
    """There are too few clicks, or too few non-clicks, to fit a calibration."""


@dataclass(frozen=True)
class Fit:
    """A curve with the shifts of segments.

    Attributes:
        method: How the curve was fitted.
        knots: See FittedCalibration.
        segments: The shifts, in ascending order of their ids.
        left_out: The number of segments without a shift, because there are more than MAX_SEGMENTS.
    """

    method: Method
    knots: Knots
    segments: tuple[SegmentShift, ...] = ()
    left_out: int = 0


def fit(
    rows: Rows, method: Method | None, tokens_of: Callable[[NDArray[np.int64]], Sequence[str | None]] | None = None
) -> Fit:
    """Fit a calibration. Predicted / observed of the rows is then 1.

    Args:
        rows: The rows, which neither trained the model nor evaluate the calibration.
        method: Platt scaling or isotonic regression. None chooses by the number of clicks.
        tokens_of: A function from ids of the segment field to their tokens, if the rows have segments.

    Raises:
        TooFewClicksError: If there are fewer than MIN_CLICKS clicks or non-clicks.
        ValueError: If the click rate does not rise with the prediction.
    """
    check_clicks(rows)
    rows = rows.select(rows.importance > 0)
    chosen = method or ("platt" if rows.clicks < ISOTONIC_CLICKS else "isotonic")
    knots = fit_platt(rows) if chosen == "platt" else fit_isotonic(rows)
    logit, segments, left_out = curve(knots, rows.logit), tuple[SegmentShift, ...](), 0
    if rows.segment is not None and tokens_of is not None:
        knots = shifted(knots, shift_to(logit, rows.weight, observed_clicks(rows)))
        logit = curve(knots, rows.logit)
        segments, left_out = fit_segments(rows, logit, tokens_of)
        logit = logit + shift_of_rows(segments, rows.segment)
    knots = shifted(knots, shift_to(logit, rows.weight, observed_clicks(rows)))
    return Fit(chosen, knots, segments, left_out)


def check_clicks(rows: Rows) -> None:
    """Check that there are enough clicks and non-clicks. Rows with weight 0 do not count.

    Raises:
        TooFewClicksError: If there are not.
    """
    counted = rows.label[rows.importance > 0] > 0.5
    for name, found in (("clicks", int(counted.sum())), ("non-clicks", int((~counted).sum()))):
        if found < MIN_CLICKS:
            raise TooFewClicksError(
                f"{found:,} {name} are too few to fit a calibration, which needs at least {MIN_CLICKS}. Use more rows "
                "(a longer valid), or serve the run without a calibration."
            )


def observed_clicks(rows: Rows) -> float:
    """Return the weighted number of clicks."""
    return float(np.dot(rows.weight, rows.label))


def curve(knots: Knots, x: Floats) -> Floats:
    """Return the values of a piecewise linear function whose first and last pieces continue, (rows)."""
    points = np.array(knots)
    slopes = np.diff(points[:, 1]) / np.diff(points[:, 0])
    piece = np.clip(np.searchsorted(points[:, 0], x, side="right") - 1, 0, len(slopes) - 1)
    y: Floats = points[piece, 1] + (x - points[piece, 0]) * slopes[piece]
    return y


def fit_segments(
    rows: Rows, logit: Floats, tokens_of: Callable[[NDArray[np.int64]], Sequence[str | None]]
) -> tuple[tuple[SegmentShift, ...], int]:
    """Return the shift of each segment, and the number of segments that are left out.

    Args:
        rows: The rows, with segments.
        logit: The logits on the curve, (rows).
        tokens_of: See fit().
    """
    assert rows.segment is not None
    ids, counts = np.unique(rows.segment, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_SEGMENTS])
    order = np.argsort(rows.segment, kind="stable")
    ends = np.cumsum(counts)
    shifts = []
    for index, value in zip(kept.tolist(), tokens_of(ids[kept]), strict=True):
        chosen = order[ends[index] - counts[index] : ends[index]]
        part = rows.select(chosen)
        shift = segment_shift(part, logit[chosen])
        shifts.append(SegmentShift(int(ids[index]), value, shift, len(part), part.clicks))
    return tuple(shifts), len(ids) - len(kept)


def segment_shift(rows: Rows, logit: Floats) -> float:
    """Return the shift that makes predicted = observed, shrunk by n / (n + PRIOR_CLICKS) with n effective clicks.

    n counts clicks and not rows, because the variance of the shift before shrinkage is 1 / clicks, and non-clicks do
    not change it. So the standard error of a shift is at most 5%, whatever the click rate.

    Args:
        rows: The rows of one segment.
        logit: Their logits on the curve, (rows).
    """
    weight = rows.weight
    unit = float(rows.importance.mean())
    # Half a click, or half a non-click, keeps the shift finite in a segment that has none.
    clicks = float(np.clip(observed_clicks(rows), unit / 2, max(float(weight.sum()) - unit / 2, unit / 2)))
    effective = effective_clicks(rows, sigmoid(logit))
    return shift_to(logit, weight, clicks) * effective / (effective + PRIOR_CLICKS)


def shift_of_rows(segments: Sequence[SegmentShift], ids: NDArray[np.int64]) -> Floats:
    """Return the shift of each row, (rows). Segments without a shift have 0."""
    shifts = np.zeros(int(ids.max(initial=0)) + 1)
    for segment in segments:
        shifts[segment.id] = segment.shift
    return shifts[ids]
