"""Fitting the calibration of a run, measuring it, and writing both into the run folder."""

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.bundle import SCHEMA
from contract.calibration import CALIBRATION, FittedCalibration, check_fitted, encode_fitted
from contract.schema import read_schema
from export.calibrate.fit import Method, fit
from export.calibrate.judge import judge
from export.calibrate.report import (
    JSON,
    MARKDOWN,
    PICTURE,
    CalibrationReport,
    describe_split,
    make_report,
    markdown,
    picture,
)
from export.calibrate.source import Source, tokens_of, weights_digest
from model.atomic_folder import write_all


def calibrate(run: Path, source: Source, by: str | None = None, method: Method | None = None) -> CalibrationReport:
    """Fit a calibration to valid, measure it on test, and write calibration.json and its report into the run.

    The files are replaced only after everything has been computed. The same rows give the same bytes.

    Args:
        run: The run folder.
        source: Scored rows of valid and test.
        by: The segment field, or None.
        method: Platt scaling or isotonic regression, or None to choose by the number of clicks.

    Raises:
        TooFewClicksError: If valid has too few clicks or non-clicks.
        ValueError: If the click rate does not rise with the prediction, or test has only clicks or no clicks.
        OSError: If a file cannot be written. The old files are then kept.
    """
    schema = read_schema(run / SCHEMA)

    def tokens(ids: NDArray[np.int64]) -> list[str | None]:
        assert by is not None
        return tokens_of(run, by, ids)

    valid, test = source.valid, source.test
    found = fit(valid, method, tokens if by is not None else None)
    fitted = FittedCalibration(
        weights=source.weights,
        method=found.method,
        knots=found.knots,
        rows=len(valid),
        clicks=valid.clicks,
        segment_field=by,
        segments=found.segments,
    )
    check_fitted(fitted, schema)
    values: dict[int, str | None] = {}
    if test.segment is not None:
        ids = np.unique(test.segment)
        values = dict(zip(ids.tolist(), tokens(ids), strict=True))
    quality = judge(test, fitted, schema, values)
    content = encode_fitted(fitted)
    splits = describe_split(source.names[0], valid), describe_split(source.names[1], test)
    report = make_report(content, fitted, found.left_out, splits, quality)
    if weights_digest(run) != source.weights:
        raise ValueError(f"{run} was trained again while it was being calibrated. Run ctr-calibrate again.")
    write_all(
        {
            run / PICTURE: picture(*quality),
            run / MARKDOWN: markdown(report).encode(),
            run / JSON: msgspec.json.format(msgspec.json.encode(report)) + b"\n",
            run / CALIBRATION: content,
        }
    )
    return report
