"""The rules by which the figures of a gate become a verdict. docs/gate.md gives the reasons."""

import msgspec
from scipy import stats  # type: ignore[import-untyped]

from contract.gate import Verdict
from export.gate.figures import Estimate, Figures, SegmentFigures

# A one-sided 95% bound is this many standard errors above an estimate. Adding 0.84, an equal model passes in 80%.
ERRORS_TO_DECIDE = float(stats.norm.ppf(0.95) + stats.norm.ppf(0.8))


class Limits(msgspec.Struct, frozen=True):
    """The limits of a gate.

    Attributes:
        margin: How much worse the normalized entropy of the new model may be, relative to that of the old one.
        tolerance: How far predicted / observed of the new model may be from 1, overall.
        segment_tolerance: The same for segments, and for the overall interval.
        min_clicking: How many units must have a click, because intervals from fewer units are not reliable.
    """

    margin: float = 0.001
    tolerance: float = 0.02
    segment_tolerance: float = 0.05
    min_clicking: int = 100


class Check(msgspec.Struct, frozen=True):
    """One of the conditions for passing.

    Attributes:
        name: What is checked.
        verdict: Whether the condition holds.
        reason: Why, in one sentence.
    """

    name: str
    verdict: Verdict
    reason: str


def decide(figures: Figures, limits: Limits) -> tuple[Verdict, tuple[Check, ...]]:
    """Return the verdict, and all checks.

    With too few clicking units, there is no verdict at all. Otherwise, a single failed check is enough to fail.
    """
    overall = [check_clicks(figures, limits), check_entropy(figures, limits), check_calibration(figures, limits)]
    segments = check_segments(figures, limits)
    checks = (*overall, *segments)
    if overall[0].verdict != "pass":
        return overall[0].verdict, checks
    if any(check.verdict == "fail" for check in checks):
        return "fail", checks
    if any(check.verdict != "pass" for check in overall):
        return "not enough clicks", checks
    return "pass", checks


def reasons(checks: tuple[Check, ...], verdict: Verdict) -> tuple[str, ...]:
    """Return why the verdict is not "pass": the reasons of the checks with that verdict."""
    if verdict == "pass":
        return ()
    return tuple(check.reason for check in checks if check.verdict == verdict and not is_open_segment(check))


def is_open_segment(check: Check) -> bool:
    """Return whether a check is that of a segment without enough clicks, which has no effect on the verdict."""
    return check.name.startswith("segment ") and check.verdict == "not enough clicks"


def check_clicks(figures: Figures, limits: Limits) -> Check:
    """Check that there are enough clusters with clicks for intervals."""
    clicking = figures.clicking_clusters
    verdict: Verdict = "pass" if clicking >= limits.min_clicking else "not enough clicks"
    reason = f"{clicking:,} {figures.drawn}s have a click; at least {limits.min_clicking:,} are needed."
    return Check("clicks", verdict, reason)


def check_entropy(figures: Figures, limits: Limits) -> Check:
    """Check that the new model is not worse than the old one by more than the margin, in normalized entropy."""
    found, margin = figures.normalized_entropy, limits.margin
    bound = f"the normalized entropy changes by {found.value:+.3%}, at most {found.upper:+.3%} with 95% confidence"
    if found.upper <= margin:
        return Check("normalized entropy", "pass", f"{bound}, within the margin of {margin:+.3%}.")
    outside = f"{bound}, which exceeds the margin of {margin:+.3%}"
    if found.lower > margin:
        return Check("normalized entropy", "fail", f"{outside}. Even the lower bound, {found.lower:+.3%}, exceeds it.")
    needed = (ERRORS_TO_DECIDE * found.error / margin) ** 2
    if needed <= 1:
        return Check("normalized entropy", "fail", f"{outside}. An equal model would have passed in 80% of cases.")
    more = f"An equal model passes in 80% of cases with about {needed:,.1f} times as many {figures.drawn}s"
    return Check("normalized entropy", "not enough clicks", f"{outside}. {more}.")


def check_calibration(figures: Figures, limits: Limits) -> Check:
    """Check predicted / observed of the new model over all rows.

    The estimate must be within the tolerance, and its interval within that of segments.
    """
    found = figures.new.predicted_over_observed
    text = f"predicted / observed is {found.value:.4f}, 95% interval {found.low:.4f} to {found.high:.4f}"
    if is_outside(found, limits.tolerance):
        reason = f"{text}, which is outside 1 \N{PLUS-MINUS SIGN} {limits.tolerance:g}. Calibrate the model again."
        return Check("predicted / observed", "fail", reason)
    if abs(found.value - 1) > limits.tolerance:
        reason = (
            f"{text}; the estimate is not within 1 \N{PLUS-MINUS SIGN} {limits.tolerance:g}, but its interval overlaps."
        )
        return Check("predicted / observed", "not enough clicks", reason)
    if max(1 - found.low, found.high - 1) > limits.segment_tolerance:
        reason = f"{text}; the interval is not within 1 \N{PLUS-MINUS SIGN} {limits.segment_tolerance:g}."
        return Check("predicted / observed", "not enough clicks", reason)
    return Check("predicted / observed", "pass", f"{text}.")


def check_segments(figures: Figures, limits: Limits) -> list[Check]:
    """Check predicted / observed of the new model in each segment."""
    found = []
    for field, segments in figures.segments.items():
        for segment in segments:
            verdict = segment_verdict(segment, limits.segment_tolerance)
            found.append(Check(f"segment {field}: {segment.name}", verdict, segment_reason(field, segment, limits)))
    return found


def segment_verdict(segment: SegmentFigures, tolerance: float) -> Verdict:
    """Return the verdict on a segment. It fails only if its whole interval is outside the tolerance."""
    if segment.low is not None and segment.low > 1 + tolerance:
        return "fail"
    if segment.low is None or segment.high is None:
        return "not enough clicks"
    if segment.high < 1 - tolerance:
        return "fail"
    return "pass" if segment.high - segment.low <= 2 * tolerance else "not enough clicks"


def segment_reason(field: str, segment: SegmentFigures, limits: Limits) -> str:
    """Return a sentence about a segment."""
    name = f'{field} "{segment.name}": '
    if segment.ratio is None or segment.low is None or segment.high is None:
        expected = f"{segment.predicted * segment.rows:,.1f} predicted"
        return f"{name}{segment.clicks:,} clicks in {segment.rows:,} rows, {expected}."
    interval = f"interval {segment.low:.4f} to {segment.high:.4f}"
    return (
        f"{name}predicted / observed is {segment.ratio:.4f}, {interval}, {segment.clicks:,} clicks; the tolerance is "
        f"{limits.segment_tolerance:g}."
    )


def is_outside(found: Estimate, tolerance: float) -> bool:
    """Return whether the whole interval of a ratio is outside the tolerance."""
    return found.low > 1 + tolerance or found.high < 1 - tolerance
