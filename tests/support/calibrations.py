"""Runs with a fitted calibration."""

import bisect
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec

from contract.bundle import VOCABULARY
from contract.calibration import CALIBRATION, FittedCalibration, SegmentShift, encode_fitted
from contract.vocabulary import MISSING, open_vocabulary
from model.experiments.run_folder import WEIGHTS, file_digests

FIELD = "device"
KNOTS = ((-4.0, -3.0), (-2.0, -2.5), (-1.0, -0.5), (0.5, 0.75))
SHIFTS = {"phone": 0.6, "tablet": -0.4, None: 0.3}  # None stands for a missing value. Desktops have no entry.


def fitted_for(run: Path, **changes: Any) -> FittedCalibration:
    """Return a calibration for a run on the generated log: a bent line, and shifts of devices."""
    devices = open_vocabulary(run / VOCABULARY, FIELD)
    ids = {value: MISSING if value is None else devices(value) for value in SHIFTS}
    segments = [SegmentShift(ids[value], value, shift, 100, 10) for value, shift in SHIFTS.items()]
    fitted = FittedCalibration(
        weights=file_digests(run)[WEIGHTS],
        method="isotonic",
        knots=KNOTS,
        rows=1234,
        clicks=321,
        segment_field=FIELD,
        segments=tuple(sorted(segments, key=lambda segment: segment.id)),
    )
    return msgspec.structs.replace(fitted, **changes)


def with_calibration(run: Path, copy: Path, **changes: Any) -> Path:
    """Copy a run, write its calibration.json, and return the copy."""
    shutil.copytree(run, copy)
    (copy / CALIBRATION).write_bytes(encode_fitted(fitted_for(run, **changes)))
    return copy


def expected_ctr(logit: float, negative_rate: float, device: str | None) -> float:
    """Return the probability for a raw logit, computed without the code under test."""
    x = logit + math.log(negative_rate)
    piece = min(max(bisect.bisect([knot for knot, _ in KNOTS], x) - 1, 0), len(KNOTS) - 2)
    (left, low), (right, high) = KNOTS[piece], KNOTS[piece + 1]
    y = low + (x - left) * (high - low) / (right - left) + SHIFTS.get(device, 0.0)
    return 1 / (1 + math.exp(-y))
