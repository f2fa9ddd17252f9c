"""Calibration: from the model's logits to probabilities.

It has two steps, and each one preserves the order of the candidates of a request:

1. Calibration, in the manifest, corrects for a log that kept only a share of its negatives.
2. FittedCalibration, in calibration.json, was fitted by ctr-calibrate on later traffic. It is optional.

Legend: N candidates of R requests, Fu categorical context fields.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.regular_file import read_regular_file
from contract.schema import FeatureSchema

CALIBRATION = "calibration.json"  # in runs and in bundles
MAX_BYTES = 4 * 1024 * 1024  # of calibration.json
# With this slope, logits that differ by 1e-10 get different calibrated logits. Adjacent float32 logits differ by more,
# except for those closer to 0 than 0.001.
MIN_SLOPE = 0.05
MAX_SLOPE = 1000.0  # A steeper piece would turn the rounding of a float32 logit into a visible difference.
MAX_LOGIT = 1000.0  # of knots and shifts, in absolute value. Sums of larger numbers would lose small differences.
MAX_KNOTS = 1000
MAX_SEGMENTS = 1000
MAX_ID = 2**31 - 1


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
        weights: The SHA-256 of the file with the model's weights (weights.safetensors of the run, as in file_digests()
            of model/experiments/run_folder.py). The calibration fits no other model.
        method: How the function was fitted. Platt scaling has two knots, and isotonic regression more.
        knots: (corrected logit, calibrated logit) in ascending order, at least two. All slopes are from MIN_SLOPE to
            MAX_SLOPE.
        rows: The number of rows on which it was fitted.
        clicks: The number of their clicks.
        segment_field: The categorical context field that the segments belong to, or None.
        segments: The shifts, in ascending order of their ids. Values without an entry are not shifted.
    """

    weights: str
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
        if fitted is None:
            return
        check_fitted(fitted, schema)
        self._x, self._y = np.array(fitted.knots, np.float64).T.copy()
        self._slopes = np.diff(self._y) / np.diff(self._x)
        # Rounding must not lift a piece above the start of the next one. The last piece has no upper end.
        self._ends = np.append(self._y[1:-1], np.inf)
        self._column: int | None = None
        if fitted.segment_field is not None:
            names = [field.name for field in schema.select("categorical", "context")]
            self._column = names.index(fitted.segment_field)
            # The last entry is for ids above all others, so that every search finds one.
            self._ids = np.array([*(segment.id for segment in fitted.segments), MAX_ID + 1], np.int64)
            self._shifts = np.array([*(segment.shift for segment in fitted.segments), 0.0], np.float64)

    def ctr(
        self, logit: NDArray[np.floating], context_ids: NDArray[np.generic], request_index: NDArray[np.generic]
    ) -> NDArray[np.float64]:
        """Return the probabilities of candidates.

        Args:
            logit: The model's logits. Shape: (N).
            context_ids: The inputs of the serving graph for R requests. Shape: int64 (R, Fu).
            request_index: The request of each candidate. Shape: int64 (N).
        """
        return sigmoid(self.calibrated(logit, context_ids, request_index))

    def calibrated(
        self, logit: NDArray[np.floating], context_ids: NDArray[np.generic], request_index: NDArray[np.generic]
    ) -> NDArray[np.float64]:
        """Return the logits after both steps, float64 (N). The arguments are those of ctr()."""
        x = self.correction.corrected(logit)
        if self.fitted is None:
            return x
        piece = self._x[1:-1].searchsorted(x, side="right")  # 0 before the second knot, which continues the first piece
        y: NDArray[np.float64] = self._y[piece] + (x - self._x[piece]) * self._slopes[piece]
        y = np.minimum(y, self._ends[piece])
        if self._column is not None:
            y += self._segment_shifts(context_ids[:, self._column])[request_index]
        return y

    def _segment_shifts(self, ids: NDArray[np.generic]) -> NDArray[np.float64]:
        """Return the shift of each request, float64 (R). `ids` are those of the segment field, (R)."""
        entry = self._ids.searchsorted(ids)
        return np.where(self._ids[entry] == ids, self._shifts[entry], 0.0)


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)), without overflow for large or small x."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def read_fitted(path: Path) -> FittedCalibration:
    """Read a calibration.json. Check it with check_fitted() before use, as Calibrator does.

    Raises:
        ValueError: If the file is not regular, is too large, or has the wrong format. The message names the file.
    """
    raw = read_regular_file(path, MAX_BYTES)
    try:
        return msgspec.json.decode(raw, type=FittedCalibration)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def encode_fitted(fitted: FittedCalibration) -> bytes:
    """Return the content of calibration.json, as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(fitted)) + b"\n"


def check_fitted(fitted: FittedCalibration, schema: FeatureSchema) -> None:
    """Check that a fitted calibration preserves the order of candidates and fits a schema.

    Raises:
        ValueError: If it does not. The message says why.
    """
    knots = fitted.knots
    if not 2 <= len(knots) <= MAX_KNOTS:
        raise ValueError(f"{CALIBRATION} has {len(knots)} knots; expected 2 to {MAX_KNOTS}")
    for number in (number for knot in knots for number in knot):
        if not abs(number) <= MAX_LOGIT:  # NaN fails as well
            raise ValueError(
                f"{CALIBRATION} has a knot at {number:g}; expected at most {MAX_LOGIT:g} in absolute value"
            )
    for (left, low), (right, high) in pairwise(knots):
        # Rounding may move the slope of a piece a little out of the range that it was fitted in.
        if not (right > left and MIN_SLOPE * (1 - 1e-9) <= (high - low) / (right - left) <= MAX_SLOPE * (1 + 1e-9)):
            raise ValueError(
                f"{CALIBRATION}: the knots ({left:g}, {low:g}) and ({right:g}, {high:g}) do not ascend with a slope "
                f"from {MIN_SLOPE:g} to {MAX_SLOPE:g}, so the probabilities would be equal, reversed or unstable"
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
    if ids != sorted(set(ids)) or (ids and not 0 <= ids[0] <= ids[-1] <= MAX_ID):
        raise ValueError(f"{CALIBRATION}: the ids of the segments do not ascend from 0 to at most {MAX_ID}")
    for segment in fitted.segments:
        if not abs(segment.shift) <= MAX_LOGIT:
            raise ValueError(
                f"{CALIBRATION}: the segment {segment.id} has the shift {segment.shift:g}; expected at most "
                f"{MAX_LOGIT:g} in absolute value"
            )
