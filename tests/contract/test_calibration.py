"""Calibration: different logits never become equal, candidates keep their order, and invalid files are refused."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from contract.calibration import (
    CALIBRATION,
    MAX_BYTES,
    MAX_KNOTS,
    MAX_LOGIT,
    MAX_SLOPE,
    MIN_SLOPE,
    Calibration,
    Calibrator,
    FittedCalibration,
    SegmentShift,
    check_fitted,
    encode_fitted,
    read_fitted,
)
from contract.schema import FeatureSchema, Field

SCHEMA = FeatureSchema(
    (
        Field("user", "context"),
        Field("slot", "context"),
        Field("age", "context", "numeric", 0, 1),
        Field("ad", "candidate"),
    )
)
FITTED = FittedCalibration(
    weights="0" * 64,
    method="isotonic",
    knots=((-4.0, -3.0), (-2.0, -2.5), (1.0, 2.0)),
    rows=1000,
    clicks=100,
    segment_field="slot",
    segments=(SegmentShift(0, None, 0.5, 100, 10), SegmentShift(3, "top", -0.25, 500, 60)),
)
LOGIT = st.floats(-60, 60, width=32)


@st.composite
def curves(draw: st.DrawFn) -> FittedCalibration:
    """Draw any valid calibration of the overall function."""
    x, y = draw(st.floats(-20, 20)), draw(st.floats(-20, 20))
    slope = st.one_of(st.floats(MIN_SLOPE, MAX_SLOPE), st.just(MIN_SLOPE), st.floats(0.5, 2))
    knots = [(x, y)]
    for _ in range(draw(st.integers(1, 6))):
        gap = draw(st.floats(1e-4, 10))
        x, y = x + gap, y + gap * draw(slope)
        if y > MAX_LOGIT:
            break
        knots.append((x, y))
    fitted = msgspec.structs.replace(FITTED, knots=tuple(knots), segment_field=None, segments=())
    try:
        check_fitted(fitted, SCHEMA)
    except ValueError:  # rounding the sums moved a slope out of its range
        knots = [(-1.0, -1.0), (1.0, -1.0 + 2 * MIN_SLOPE)]
    return msgspec.structs.replace(fitted, knots=tuple(knots))


def calibrate(calibrator: Calibrator, logits: list[float] | NDArray[np.float32], slot: int = 2) -> NDArray[np.float64]:
    """Return the calibrated logits of the candidates of one request."""
    logit = np.array(logits, np.float32)
    return calibrator.calibrated(logit, np.array([[5, slot]]), np.zeros(len(logit), np.int64))


@given(fitted=curves(), logit=LOGIT, rate=st.sampled_from([1.0, 0.5, 0.01]), shift=st.floats(-5, 5))
def test_adjacent_float32_logits_get_different_calibrated_logits(
    fitted: FittedCalibration, logit: float, rate: float, shift: float
) -> None:
    """The domain: adjacent float32 numbers up to 60, which are at least 1e-10 apart beyond 0.001."""
    logit = logit if abs(logit) >= 0.001 else math.copysign(0.001, logit)
    segment = msgspec.structs.replace(fitted, segment_field="slot", segments=(SegmentShift(2, "s", shift, 1, 0),))
    calibrator = Calibrator(Calibration.of_log(rate), segment, SCHEMA)
    low = np.float32(logit)
    lower, higher = calibrate(calibrator, np.array([low, np.nextafter(low, np.float32(np.inf))]))
    assert lower < higher


@given(fitted=curves(), logit=st.floats(-1, 1), gap=st.floats(1e-10, 1e-8))
def test_logits_that_differ_by_1e_10_get_different_calibrated_logits(
    fitted: FittedCalibration, logit: float, gap: float
) -> None:
    calibrator = Calibrator(Calibration.of_log(0.1), fitted, SCHEMA)
    pair = np.array([logit, logit + gap])
    lower, higher = calibrator.calibrated(pair, np.array([[5, 2]]), np.zeros(2, np.int64))
    assert lower < higher


@given(fitted=curves(), logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=30))
def test_the_order_of_the_candidates_of_a_request_is_preserved(fitted: FittedCalibration, logits: list[float]) -> None:
    calibrator = Calibrator(Calibration(), fitted, SCHEMA)
    # The knots themselves and their neighbors, where rounding could exchange two pieces.
    knots = np.array([x for x, _ in fitted.knots], np.float32)
    ascending = np.sort(np.concatenate([logits, knots, np.nextafter(knots, np.float32(-np.inf))]).astype(np.float32))
    assert (np.diff(calibrate(calibrator, ascending)) >= 0).all()
    ctr = calibrator.ctr(ascending, np.array([[5, 2]]), np.zeros(len(ascending), np.int64))
    assert (np.diff(ctr) >= 0).all()
    assert ((ctr >= 0) & (ctr <= 1)).all()


@given(
    logits=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
    scale=st.floats(0.01, 10),
    shift=st.floats(-20, 20),
)
def test_without_a_fitted_calibration_only_the_correction_applies(
    logits: list[float], scale: float, shift: float
) -> None:
    logit = np.array(logits, np.float32)
    x = scale * logit.astype(np.float64) + shift
    small = np.exp(-np.abs(x))
    expected = np.where(x >= 0, 1.0, small) / (1.0 + small)
    calibrator = Calibrator(Calibration(scale, shift), None, SCHEMA)
    ctr = calibrator.ctr(logit, np.zeros((1, 2), np.int64), np.zeros(len(logit), np.int64))
    assert ctr.tobytes() == expected.tobytes()


def test_values_at_the_knots_between_them_and_beyond_them() -> None:
    calibrator = Calibrator(Calibration(), FITTED, SCHEMA)
    assert calibrate(calibrator, [-6, -4, -3, -2, -0.5, 1, 2]).tolist() == [-3.5, -3, -2.75, -2.5, -0.25, 2, 3.5]


def test_the_correction_is_applied_first() -> None:
    calibrator = Calibrator(Calibration(shift=-1.0), FITTED, SCHEMA)
    assert calibrate(calibrator, [0.5]).tolist() == [-0.25]


def test_each_request_of_a_batch_gets_the_shift_of_its_own_segment() -> None:
    calibrator = Calibrator(Calibration(), FITTED, SCHEMA)
    # The slots: unknown, missing, without an entry, with an entry, above all entries.
    context_ids = np.array([[9, 0], [9, 1], [9, 2], [9, 3], [9, 4000]])
    calibrated = calibrator.calibrated(np.zeros(6, np.float32), context_ids, np.array([0, 1, 2, 3, 3, 4]))
    assert calibrated.tolist() == [1.0, 0.5, 0.5, 0.25, 0.25, 0.5]


def test_a_segment_field_without_segments_shifts_nothing() -> None:
    calibrator = Calibrator(Calibration(), msgspec.structs.replace(FITTED, segments=()), SCHEMA)
    assert [calibrate(calibrator, [0.0], slot).tolist() for slot in (0, 3)] == [[0.5], [0.5]]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / CALIBRATION
    path.write_bytes(encode_fitted(FITTED))
    assert read_fitted(path) == FITTED


LINE = ((0.0, 0.0), (1.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knots": LINE[:1]}, "has 1 knots; expected 2 to 1000"),
        ({"knots": tuple((float(x), float(x)) for x in range(MAX_KNOTS + 1))}, "has 1001 knots"),
        ({"knots": ((0.0, 0.0), (1.0, 0.0))}, "do not ascend with a slope from 0.05 to 1000"),
        ({"knots": ((0.0, 0.0), (1.0, 0.04))}, "do not ascend"),
        ({"knots": ((0.0, 0.0), (0.001, 1.1))}, "do not ascend"),
        ({"knots": ((0.0, 0.0), (0.0, 1.0))}, "do not ascend"),
        ({"knots": ((1.0, 1.0), (0.0, 0.0))}, "do not ascend"),
        ({"knots": ((-1e308, -1e308), (1e308, 1e308))}, r"has a knot at -1e\+308; expected at most 1000"),
        ({"knots": ((0.0, math.nan), (1.0, 1.0))}, "has a knot at nan"),
        ({"knots": ((0.0, 0.0), (1.0, math.inf))}, "has a knot at inf"),
        ({"segment_field": None}, "has segments but no segment_field"),
        ({"segment_field": "ad"}, '"ad" is not a categorical field of the context. A field of the candidates would'),
        ({"segment_field": "age"}, '"age" is not a categorical field of the context'),
        ({"segment_field": "no such field"}, '"no such field" is not a categorical field'),
        ({"segments": (SegmentShift(3, "a", 0.0, 1, 0), SegmentShift(3, "b", 0.0, 1, 0))}, "do not ascend from 0"),
        ({"segments": (SegmentShift(-1, "a", 0.0, 1, 0),)}, "do not ascend from 0"),
        ({"segments": (SegmentShift(2**40, "a", 0.0, 1, 0),)}, "do not ascend from 0 to at most 2147483647"),
        ({"segments": (SegmentShift(3, "a", -1e300, 1, 0),)}, r"the segment 3 has the shift -1e\+300"),
        ({"segments": tuple(SegmentShift(i, None, 0.0, 1, 0) for i in range(1001))}, "has 1001 segments"),
    ],
)
def test_a_calibration_that_could_reorder_candidates_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Calibrator(Calibration(), msgspec.structs.replace(FITTED, **changes), SCHEMA)
    assert CALIBRATION in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encode_fitted(FITTED).replace(b"-4.0", b"-1e999"), "out of range"),
        (encode_fitted(FITTED).replace(b"-4.0", b"NaN"), "invalid"),
        (encode_fitted(FITTED).replace(b'"rows"', b'"row"'), "unknown field `row`"),
        (encode_fitted(FITTED).replace(b'"isotonic"', b'"magic"'), "Invalid enum value 'magic'"),
        (encode_fitted(FITTED).replace(b'"weights"', b'"other"'), "unknown field `other`|missing required field"),
        (b"", "truncated"),
        (b"\xff\xfe", "malformed|utf-8|invalid"),
        (b"[" * 100_000, "Expected .object., got .array."),
        (b" " * (MAX_BYTES + 1), "is larger than 4,194,304 bytes"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / CALIBRATION
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?i){message}") as refused:
        read_fitted(path)
    assert str(path) in str(refused.value)
