"""The picture of a gate report: the intervals that decide, and the reliability of both models."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from export.gate.figures import Figures, SegmentFigures
from export.gate.verdict import Limits

DPI = 120
MAX_SEGMENTS = 25
COLORS = {"new": "C0", "old": "C1"}


def draw(figures: Figures, limits: Limits, path: Path) -> None:
    """Write a PNG with four panels: entropy, differences of AUC, predicted / observed, and reliability."""
    mpl.use("agg")
    segments = largest_segments(figures)
    figure = Figure(figsize=(12, 6 + 0.15 * len(segments)), layout="constrained")
    (entropy, ratios), (aucs, reliability) = figure.subplots(2, 2, height_ratios=[1, 1.6 + 0.06 * len(segments)])
    draw_entropy(entropy, figures, limits)
    draw_aucs(aucs, figures)
    draw_reliability(ratios, figures)
    draw_ratios(reliability, figures, segments, limits)
    figure.savefig(path, dpi=DPI, format="png", metadata={"Software": None})


def largest_segments(figures: Figures) -> list[tuple[str, SegmentFigures]]:
    """Return the segments with the most clicks that have an interval, with their labels."""
    named = [(f"{field}: {segment.name}", segment) for field, found in figures.segments.items() for segment in found]
    with_interval = [
        (label, segment) for label, segment in named if segment.low is not None and segment.high is not None
    ]
    return sorted(with_interval, key=lambda pair: -pair[1].clicks)[:MAX_SEGMENTS]


def draw_entropy(axes: Axes, figures: Figures, limits: Limits) -> None:
    """Draw the change of the normalized entropy, its two-sided interval and its one-sided bound."""
    found = figures.normalized_entropy
    axes.plot([found.low, found.high], [0, 0], "C0-", linewidth=2, label="95% interval")
    axes.plot([found.value], [0], "C0o")
    axes.plot([found.upper], [0], "C0|", markersize=18, label="95% upper bound")
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.axvline(limits.margin, color="C3", linestyle="--", label=f"margin {limits.margin:+.2%}")
    axes.set(yticks=[], title="change of normalized entropy (less is better)")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1, 2))
    axes.legend(fontsize=8)


def draw_aucs(axes: Axes, figures: Figures) -> None:
    """Draw the differences of AUC."""
    found = [("AUC", figures.auc), *([("AUC within units", figures.gauc)] if figures.gauc else [])]
    for row, (_, difference) in enumerate(found):
        axes.plot([difference.low, difference.high], [row, row], "C0-", linewidth=2)
        axes.plot([difference.value], [row], "C0o")
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.set(title="difference of AUC (more is better)", ylim=(len(found) - 0.5, -0.5))


def draw_reliability(axes: Axes, figures: Figures) -> None:
    """Draw the click rate of each decile over its mean prediction."""
    for name, model in (("new", figures.new), ("old", figures.old)):
        axes.plot(
            [decile.predicted for decile in model.deciles],
            [decile.observed for decile in model.deciles],
            "o-",
            color=COLORS[name],
            markersize=4,
            label=name,
        )
    top = max(max(d.predicted, d.observed) for model in (figures.new, figures.old) for d in model.deciles)
    axes.plot([0, top], [0, top], "k:", label="calibrated")
    axes.set(xlabel="mean prediction of the decile", ylabel="click rate", title="reliability")
    axes.legend(fontsize=8)


def draw_ratios(axes: Axes, figures: Figures, segments: Sequence[tuple[str, SegmentFigures]], limits: Limits) -> None:
    """Draw predicted / observed of both models, and of the new model in each segment."""
    overall = [("new, all rows", figures.new, "new"), ("old, all rows", figures.old, "old")]
    for row, (_, model, name) in enumerate(overall):
        found = model.predicted_over_observed
        axes.plot([found.low, found.high], [row, row], "-", color=COLORS[name], linewidth=2)
        axes.plot([found.value], [row], "o", color=COLORS[name])
    for row, (_, segment) in enumerate(segments, len(overall)):
        if segment.ratio is not None and segment.low is not None and segment.high is not None:
            axes.plot([segment.low, segment.high], [row, row], "C0-")
            axes.plot([segment.ratio], [row], "C0o", markersize=4)
    axes.axvspan(1 - limits.tolerance, 1 + limits.tolerance, color="C2", alpha=0.2)
    for bound in (1 - limits.segment_tolerance, 1 + limits.segment_tolerance):
        axes.axvline(bound, color="C3", linestyle="--", linewidth=0.8)
    labels = [label for label, _, _ in overall] + [label for label, _ in segments]
    axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axes.set(title="predicted / observed", ylim=(len(labels) - 0.5, -0.5))
