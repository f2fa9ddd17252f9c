"""Calibration: from the model's logits to probabilities.

It has two steps, and each one preserves the order of the candidates of a request:

1. Calibration, in the manifest, corrects for a log that kept only a share of its negatives.
2. FittedCalibration, in calibration.json, was fitted by ctr-calibrate on later traffic. It is optional.

Legend: N candidates of R requests, Fu categorical context fields.
"""

import math
from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.schema import FeatureSchema

CALIBRATION = "calibration.json"  # in runs and in bundles
MIN_SLOPE = 0.05  # of a fitted calibration. float64 then still tells apart any two float32 logits.
MAX_KNOTS = 1000
MAX_SEGMENTS = 1000


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Corrects logits for the sampling of the log: corrected logit = scale * logit + shift."""

    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def of_log(cls, negative_rate: float) -> "Calibration":
        """Return the calibration for a log that kept only this share of its negatives.

        The odds in such a log are too high by a factor of 1 / negative_rate.
        """
        return cls(shift=math.log(negative_rate))

    def corrected(self, logit: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the corrected logits, float64 of the same shape."""
        return self.scale * logit.astype(np.float64) + self.shift

    def ctr(self, logit: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the probabilities of logits of any shape, without overflow for large or small ones."""
        return sigmoid(self.corrected(logit))


class SegmentShift(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is added to the logit for one value of the segment field.

    Attributes:
        id: The id of the value in the model's vocabulary: 0 for unknown values, 1 for a missing one.
        value: The token, for people. None for unknown and missing values.
        shift: The shift, after shrinkage.
        rows: The number of rows on which it was fitted.
        clicks: The number of their clicks.
    """

    id: int
    value: str | None
    shift: float
    rows: int
    clicks: int


class FittedCalibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of calibration.json: an increasing, piecewise linear function of the corrected logit.

    Beyond the first and the last knot, the first and the last piece continue. Then the shift of the request's segment
    is added. Segments belong to a context field, so all candidates of a request have the same one.

    Attributes:
        method: How the function was fitted. Platt scaling has two knots, and isotonic regression more.
        knots: (corrected logit, calibrated logit) in ascending order, at least two. All slopes are MIN_SLOPE or more.
        rows: The number of rows on which it was fitted.
        clicks: The number of their clicks.
        segment_field: The categorical context field that the segments belong to, or None.
        segments: The shifts, in ascending order of their ids. Values without an entry are not shifted.
    """

    method: Literal["platt", "isotonic"]
    knots: tuple[tuple[float, float], ...]
    rows: int
    clicks: int
    segment_field: str | None = None
    segments: tuple[SegmentShift, ...] = ()


class Calibrator:
    """Turns logits into probabilities: both steps, for one model.

    Args:
        correction: The first step.
        fitted: The second step, or None.
        schema: The model's fields.

    Raises:
        ValueError: `fitted` is not a valid calibration for this schema. The message says why.
    """

    def __init__(self, correction: Calibration, fitted: FittedCalibration | None, schema: FeatureSchema) -> None:
        self.correction = correction
        self.fitted = fitted
        self._knots = np.empty((0, 2))
        self._shifts = np.zeros(0)
        self._column = -1
        if fitted is None:
            return
        check_fitted(fitted, schema)
        self._knots = np.array(fitted.knots, np.float64)
        self._slopes = np.diff(self._knots[:, 1]) / np.diff(self._knots[:, 0])
        if fitted.segment_field is not None:
            names = [field.name for field in schema.select("categorical", "context")]
            self._column = names.index(fitted.segment_field)
            # The last entry is for the values without a shift.
            self._shifts = np.zeros(max((segment.id for segment in fitted.segments), default=-1) + 2)
            for segment in fitted.segments:
                self._shifts[segment.id] = segment.shift

    def ctr(
        self, logit: NDArray[np.floating], context_ids: NDArray[np.int64], request_index: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the probabilities of candidates.

        Args:
            logit: The model's logits. Shape: (N).
            context_ids: The inputs of the serving graph for R requests. Shape: int64 (R, Fu).
            request_index: The request of each candidate. Shape: int64 (N).
        """
        return sigmoid(self.calibrated(logit, context_ids, request_index))

    def calibrated(
        self, logit: NDArray[np.floating], context_ids: NDArray[np.int64], request_index: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the logits after both steps, float64 (N). The arguments are those of ctr()."""
        x = self.correction.corrected(logit)
        if self.fitted is None:
            return x
        piece = np.clip(np.searchsorted(self._knots[:, 0], x, side="right") - 1, 0, len(self._slopes) - 1)
        y: NDArray[np.float64] = self._knots[piece, 1] + (x - self._knots[piece, 0]) * self._slopes[piece]
        if self._column >= 0:
            ids = np.minimum(context_ids[:, self._column], len(self._shifts) - 1)
            y += self._shifts[ids][request_index]
        return y


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)), without overflow for large or small x."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def check_fitted(fitted: FittedCalibration, schema: FeatureSchema) -> None:
    """Check that a fitted calibration preserves the order of candidates and fits a schema.

    Raises:
        ValueError: If it does not. The message says why.
    """
    knots = fitted.knots
    if not 2 <= len(knots) <= MAX_KNOTS:
        raise ValueError(f"{CALIBRATION} has {len(knots)} knots; expected 2 to {MAX_KNOTS}")
    if not all(math.isfinite(number) for knot in knots for number in knot):
        raise ValueError(f"{CALIBRATION} has a knot that is not finite")
    for (left, low), (right, high) in pairwise(knots):
        # Rounding may make the slope of a piece a little smaller than it was when the piece was fitted.
        if not right > left or (high - low) / (right - left) < MIN_SLOPE * (1 - 1e-9):
            raise ValueError(
                f"{CALIBRATION}: the knots ({left:g}, {low:g}) and ({right:g}, {high:g}) do not ascend with a slope of "
                f"at least {MIN_SLOPE:g}, so different logits could get equal probabilities"
            )
    check_segments(fitted, schema)


def check_segments(fitted: FittedCalibration, schema: FeatureSchema) -> None:
    """Check the segments of a fitted calibration. Raises ValueError as check_fitted() does."""
    names = [field.name for field in schema.select("categorical", "context")]
    if fitted.segment_field is None:
        if fitted.segments:
            raise ValueError(f"{CALIBRATION} has segments but no segment_field")
        return
    if fitted.segment_field not in names:
        raise ValueError(
            f'{CALIBRATION}: the segment field "{fitted.segment_field}" is not a categorical field of the context. '
            "A field of the candidates would change their order."
        )
    if len(fitted.segments) > MAX_SEGMENTS:
        raise ValueError(f"{CALIBRATION} has {len(fitted.segments)} segments; expected at most {MAX_SEGMENTS}")
    ids = [segment.id for segment in fitted.segments]
    if ids != sorted(set(ids)) or (ids and ids[0] < 0):
        raise ValueError(f"{CALIBRATION}: the ids of the segments do not ascend")
    if not all(math.isfinite(segment.shift) for segment in fitted.segments):
        raise ValueError(f"{CALIBRATION} has a segment whose shift is not finite")
