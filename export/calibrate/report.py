"""The report of ctr-calibrate: JSON for programs, Markdown with a picture for people."""

import hashlib
from collections.abc import Iterable, Sequence
from io import BytesIO

import matplotlib as mpl
import msgspec
import numpy as np
from matplotlib.figure import Figure

from contract.calibration import FittedCalibration
from contract.vocabulary import MISSING, UNKNOWN
from export.calibrate.judge import Quality, Segment
from export.calibrate.rows import Rows
from export.calibrate.statistics import Ratio
from model.experiments.plots import DPI

JSON, MARKDOWN, PICTURE = "calibration-report.json", "calibration-report.md", "calibration.png"
SHOWN_SEGMENTS = 30


class SplitReport(msgspec.Struct, frozen=True):
    """The rows of valid or test.

    Attributes:
        source: Where the rows come from.
        rows: The number of rows.
        clicks: The number of their clicks.
        weighted: Whether the log has weights.
        negative_rate: The share of the negatives that the log kept.
    """

    source: str
    rows: int
    clicks: int
    weighted: bool
    negative_rate: float


class CalibrationReport(msgspec.Struct, frozen=True, kw_only=True):
    """The content of calibration-report.json.

    Attributes:
        calibration: The sha256 of the calibration.json that the report belongs to.
        method: How the curve was fitted.
        knots: The number of its knots.
        segment_field: The field of the segments, or None.
        segments: The number of segments with a shift.
        segments_left_out: The number of segments of valid without a shift, because there are too many.
        valid: The rows that the calibration was fitted to.
        test: The rows that it was measured on.
        before: The quality on test without the calibration.
        after: The quality on test with it.
        warnings: What to check before the calibration is used.
    """

    calibration: str
    method: str
    knots: int
    segment_field: str | None
    segments: int
    segments_left_out: int
    valid: SplitReport
    test: SplitReport
    before: Quality
    after: Quality
    warnings: list[str]


def describe_split(source: str, rows: Rows) -> SplitReport:
    """Return what the report says about valid or test."""
    return SplitReport(source, len(rows), rows.clicks, bool(np.ptp(rows.importance) > 0), rows.negative_rate)


def make_report(
    content: bytes,
    fitted: FittedCalibration,
    left_out: int,
    splits: tuple[SplitReport, SplitReport],
    quality: tuple[Quality, Quality],
) -> CalibrationReport:
    """Return the report.

    Args:
        content: The content of calibration.json.
        fitted: The calibration.
        left_out: The number of segments without a shift.
        splits: Valid and test.
        quality: The quality on test before and after.
    """
    return CalibrationReport(
        calibration=hashlib.sha256(content).hexdigest(),
        method=fitted.method,
        knots=len(fitted.knots),
        segment_field=fitted.segment_field,
        segments=len(fitted.segments),
        segments_left_out=left_out,
        valid=splits[0],
        test=splits[1],
        before=quality[0],
        after=quality[1],
        warnings=[*warnings_of(fitted, left_out, quality)],
    )


def warnings_of(fitted: FittedCalibration, left_out: int, quality: tuple[Quality, Quality]) -> Iterable[str]:
    """Yield what to check before the calibration is used."""
    before, after = quality
    if after.logloss > before.logloss:
        yield (
            f"the calibration makes test worse: its logloss rises by {after.logloss / before.logloss - 1:.3%}, from "
            f"{before.logloss:.6f} to {after.logloss:.6f}. Fit it to more or later rows, or remove calibration.json."
        )
    if left_out:
        yield (
            f"{left_out:,} values of {fitted.segment_field} have no shift of their own, because only the "
            f"{len(fitted.segments):,} most frequent ones have one. Choose a field with fewer values."
        )


def markdown(report: CalibrationReport) -> str:
    """Return the report for people."""
    lines = ["# Calibration", ""]
    lines += [f"**Warning**: {warning}\n" for warning in report.warnings]
    lines += [
        f"Method: {report.method}, {report.knots} knots"
        + (f", and a shift for each of {report.segments} values of {report.segment_field}" * bool(report.segment_field))
        + ".",
        "",
        *table(
            ("", "rows", "clicks", "source"), [split_cells(name, getattr(report, name)) for name in ("valid", "test")]
        ),
        "",
        "The calibration was fitted to valid. All numbers below were measured on test.",
        "",
        *table(("", "before", "after"), quality_cells(report.before, report.after)),
        "",
        f"![Predicted and observed click rates]({PICTURE})",
        "",
        "Predicted / observed, with 95% intervals. The deciles are those of the prediction before calibration.",
        "",
        *table(RATIO_HEADER, list(ratio_cells(report.before, report.after))),
    ]
    if len(report.after.segments) > SHOWN_SEGMENTS:
        lines += ["", f"The {SHOWN_SEGMENTS} segments with the most rows; {JSON} contains all."]
    return "\n".join([*lines, ""])


RATIO_HEADER = ("", "rows", "clicks", "click rate", "before", "after")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    aligned = ["---", *["--:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, aligned, *rows)]


def split_cells(name: str, split: SplitReport) -> list[str]:
    """Return the row of valid or test."""
    notes = [split.source, *["weighted"] * split.weighted]
    if split.negative_rate < 1:
        notes.append(f"{split.negative_rate:g} of the non-clicks")
    return [name, f"{split.rows:,}", f"{split.clicks:,}", ", ".join(notes)]


def quality_cells(before: Quality, after: Quality) -> list[list[str]]:
    """Return the rows of the table of metrics."""
    names = {
        "logloss": "logloss",
        "normalized entropy": "normalized_entropy",
        "expected calibration error": "calibration_error",
        "AUC": "auc",
    }
    return [
        [name, *(f"{getattr(quality, attribute):.6f}" for quality in (before, after))]
        for name, attribute in names.items()
    ]


def ratio_cells(before: Quality, after: Quality) -> Iterable[list[str]]:
    """Yield the rows of the table of ratios: overall, cold candidates, deciles and segments."""
    yield group_cells("all rows", before.overall, after.overall)
    if before.cold is not None and after.cold is not None:
        yield group_cells("cold candidates", before.cold, after.cold)
    for number, (first, second) in enumerate(zip(before.deciles, after.deciles, strict=True), 1):
        yield group_cells(f"decile {number}", first, second)
    pairs = zip(before.segments, after.segments, strict=True)
    for one, other in sorted(pairs, key=lambda pair: -pair[1].ratio.rows)[:SHOWN_SEGMENTS]:
        yield group_cells(segment_name(other), one.ratio, other.ratio)


def group_cells(name: str, before: Ratio, after: Ratio) -> list[str]:
    """Return the row of a group."""
    rate = f"{after.observed:.3%}"
    return [name, f"{after.rows:,}", f"{after.clicks:,}", rate, ratio_text(before), ratio_text(after)]


def ratio_text(ratio: Ratio) -> str:
    """Format a ratio with its interval."""
    if ratio.ratio is None or ratio.high is None:
        return f"no clicks (at least {ratio.low:.3f})"
    return f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def segment_name(segment: Segment) -> str:
    """Return the name of a segment."""
    if segment.value is not None:
        return segment.value.replace("|", "\\|")
    return {UNKNOWN: "(unknown)", MISSING: "(missing)"}.get(segment.id, f"(id {segment.id})")


def picture(before: Quality, after: Quality) -> bytes:
    """Return the reliability curves as a PNG."""
    mpl.use("agg")
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    points = [point for quality in (before, after) for b in quality.bins for point in (b.predicted, b.observed)]
    ends = np.array([min(point for point in points if point > 0), max(points)])
    for name, color, quality in (("before", "C7", before), ("after", "C0", after)):
        # A bin without clicks has no place on a logarithmic axis.
        bins = [b for b in quality.bins if b.observed > 0]
        axes.plot([b.predicted for b in bins], [b.observed for b in bins], f"{color}o-", markersize=4, label=name)
    axes.plot(ends, ends, "k:", label="calibrated")
    axes.set(xscale="log", yscale="log", xlabel="mean prediction of the bin", ylabel="click rate of the bin")
    axes.legend()
    file = BytesIO()
    figure.savefig(file, dpi=DPI, format="png")
    return file.getvalue()
