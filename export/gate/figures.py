"""What a gate measures: the differences between two models on the same rows, and their calibration.

Figures of all rows have intervals from a paired bootstrap that draws clusters of rows (see
model/experiments/bootstrap.py). All of them are functions of sums by cluster, so a resample does not need the rows.
For the AUC, this is a first-order approximation. Figures of deciles and segments, of which there may be thousands, have
intervals from the delta method with the same clusters.

Legend: C clusters.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from export.gate.rows import Drawn, ScoredRows, Segments
from model.experiments.bootstrap import SEED, auc_influence, resampled_sums
from model.poisson import poisson_interval
from model.training.metrics import auc_by_unit, base_logloss, equal_mass_bins, logloss_by_row

DRAWS = 1000
DECILES = 10
CONFIDENCE = 0.95  # of the two-sided intervals of figures over all rows
SEGMENT_CONFIDENCE = 0.99  # for all segments of a field together
FEW_CLICKS = 100  # With fewer, the delta method alone is not reliable. See ratio_factors().
# The columns of the sums by cluster. The columns of a model have the suffix _new or _old.
WEIGHT, CLICKS, GAUC_WEIGHT = range(3)
PREDICTED, LOSS, AUC, GAUC = range(4)
FIRST = {"new": 3, "old": 7}

Floats = NDArray[np.float64]
Which = Literal["new", "old"]


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its interval.

    Attributes:
        value: The figure on the rows.
        low: The lower bound of the two-sided 95% interval.
        high: The upper bound.
        error: The standard error.
        lower: The lower bound of the one-sided 95% interval, which is also the 5th percentile.
        upper: The upper bound of the one-sided 95% interval.
    """

    value: float
    low: float
    high: float
    error: float
    lower: float
    upper: float


class SegmentFigures(msgspec.Struct, frozen=True):
    """The calibration of a model on some of the rows.

    Attributes:
        name: The value of the segment, or the number of the decile.
        rows: The number of rows.
        clicks: The number of rows with a click.
        predicted: The mean prediction.
        observed: The click rate.
        ratio: predicted / observed, or None without clicks.
        low: The lower bound of the ratio's interval, or None if there are too few clicks for one.
        high: The upper bound, or None if there are too few clicks for one. Without clicks, there is only a lower bound.
        old_ratio: The ratio of the old model, or None.
    """

    name: str
    rows: int
    clicks: int
    predicted: float
    observed: float
    ratio: float | None
    low: float | None
    high: float | None
    old_ratio: float | None = None


class ModelFigures(msgspec.Struct, frozen=True):
    """The metrics of one model on the rows. See model/training/metrics.py.

    Attributes:
        auc: The AUC, 0 to 1.
        gauc: The AUC within units, weighted by their rows, or None without units.
        logloss: The logloss, natural logarithm.
        normalized_entropy: logloss divided by that of the click rate.
        predicted_over_observed: The mean prediction divided by the click rate.
        deciles: The rows in ten bins of equal weight, lowest predictions first.
    """

    auc: float
    gauc: float | None
    logloss: float
    normalized_entropy: float
    predicted_over_observed: Estimate
    deciles: tuple[SegmentFigures, ...]


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of a gate. Differences are new - old.

    Attributes:
        rows: The number of rows.
        clicks: The number of rows with a click.
        drawn: What the bootstrap draws.
        clusters: The number of clusters.
        clicking_clusters: The number of clusters with a click.
        draws: The number of resamples.
        seed: The random seed.
        base_logloss: The logloss of a constant prediction of the click rate.
        new: The metrics of the new model.
        old: The metrics of the old model.
        auc: The difference of the AUCs.
        auc_relative: AUC of the new model / AUC of the old model - 1.
        auc_relaimpr: (AUC of the new model - 0.5) / (AUC of the old model - 0.5) - 1, or None if the old AUC is at most
            0.5.
        gauc: The difference of the AUCs within units, or None without units.
        normalized_entropy: Normalized entropy of the new model / that of the old model - 1. Below 0, the new model is
            better.
        segments: The calibration of the new model in each segment, by field.
    """

    rows: int
    clicks: int
    drawn: Drawn
    clusters: int
    clicking_clusters: int
    draws: int
    seed: int
    base_logloss: float
    new: ModelFigures
    old: ModelFigures
    auc: Estimate
    auc_relative: Estimate
    auc_relaimpr: Estimate | None
    gauc: Estimate | None
    normalized_entropy: Estimate
    segments: Mapping[str, tuple[SegmentFigures, ...]]


def measure(rows: ScoredRows, draws: int = DRAWS, seed: int = SEED) -> Figures:
    """Compare two models on the same rows.

    Args:
        rows: The rows.
        draws: The number of resamples.
        seed: The random seed.

    Raises:
        ValueError: If the rows have no clicks or no non-clicks, or there are fewer than two clusters.
    """
    clicks = int(np.count_nonzero(rows.labels))
    if clicks in (0, len(rows.labels)):
        raise ValueError(f"{clicks:,} of {len(rows.labels):,} rows have a click, but AUC needs both. Name more rows.")
    sums, aucs = cluster_sums(rows)
    if len(sums) < 2:
        raise ValueError(f"all rows belong to the same {rows.drawn}, so there is nothing to resample. Name more rows.")
    total, drawn = sums.sum(axis=0)[np.newaxis], resampled_sums(sums, draws, seed)
    drawn = drawn[drawn[:, CLICKS] > 0]
    # The AUC columns hold influences, which add up to 0.
    for table in (total, drawn):
        table[:, FIRST["new"] + AUC] += aucs["new"]
        table[:, FIRST["old"] + AUC] += aucs["old"]
    auc_new, auc_old = ((total[:, f + AUC], drawn[:, f + AUC]) for f in FIRST.values())
    loss_new, loss_old = ((total[:, f + LOSS], drawn[:, f + LOSS]) for f in FIRST.values())
    gauc = difference_of_gauc(total, drawn) if total[0, GAUC_WEIGHT] else None
    base = base_logloss(rows.labels, rows.weights)
    return Figures(
        rows=len(rows.labels),
        clicks=clicks,
        drawn=rows.drawn,
        clusters=len(sums),
        clicking_clusters=int(np.count_nonzero(sums[:, CLICKS])),
        draws=draws,
        seed=seed,
        base_logloss=base,
        new=model_figures(rows, "new", total, drawn, base),
        old=model_figures(rows, "old", total, drawn, base),
        auc=estimate(*(new - old for new, old in zip(auc_new, auc_old, strict=True))),
        auc_relative=estimate(*(new / old - 1 for new, old in zip(auc_new, auc_old, strict=True))),
        auc_relaimpr=relative_improvement(auc_new, auc_old),
        gauc=gauc,
        normalized_entropy=estimate(*(new / old - 1 for new, old in zip(loss_new, loss_old, strict=True))),
        segments={name: segment_figures(segments, rows) for name, segments in rows.segments.items()},
    )


def cluster_sums(rows: ScoredRows) -> tuple[Floats, dict[Which, float]]:
    """Return the sums by cluster, (C, 11), and the AUC of each model."""
    count = int(rows.clusters.max()) + 1
    sums = np.zeros((count, 11))

    def add(column: int, values: Floats) -> None:
        sums[:, column] = np.bincount(rows.clusters, weights=values, minlength=count)

    add(WEIGHT, rows.weights)
    add(CLICKS, rows.weights * rows.labels)
    aucs: dict[Which, float] = {}
    for which, ctr in scores_of(rows).items():
        first = FIRST[which]
        add(first + PREDICTED, rows.weights * ctr)
        add(first + LOSS, rows.weights * logloss_by_row(rows.labels, ctr))
        aucs[which], influence = auc_influence(rows.labels, ctr, rows.weights)
        add(first + AUC, influence)
        by_unit, mass = auc_by_unit(rows.labels, ctr, rows.weights, rows.clusters)
        counts = ~np.isnan(by_unit) & (np.arange(count) < rows.units)
        sums[counts, first + GAUC] = (by_unit * mass)[counts]
        sums[counts, GAUC_WEIGHT] = mass[counts]
    return sums, aucs


def scores_of(rows: ScoredRows) -> dict[Which, Floats]:
    """Return the probabilities of both models."""
    return {"new": rows.new, "old": rows.old}


def model_figures(rows: ScoredRows, which: Which, total: Floats, drawn: Floats, base: float) -> ModelFigures:
    """Return the metrics of one model, from the sums over all rows (1, 11) and over the rows of each resample."""
    first, ctr = FIRST[which], scores_of(rows)[which]
    logloss = float(total[0, first + LOSS] / total[0, WEIGHT])
    gauc = float(total[0, first + GAUC] / total[0, GAUC_WEIGHT]) if total[0, GAUC_WEIGHT] else None
    return ModelFigures(
        auc=float(total[0, first + AUC]),
        gauc=gauc,
        logloss=logloss,
        normalized_entropy=logloss / base,
        predicted_over_observed=estimate(*(table[:, first + PREDICTED] / table[:, CLICKS] for table in (total, drawn))),
        deciles=calibration(deciles(ctr, rows.weights), rows, ctr, CONFIDENCE),
    )


def difference_of_gauc(total: Floats, drawn: Floats) -> Estimate:
    """Return the difference of the AUCs within units."""
    drawn = drawn[drawn[:, GAUC_WEIGHT] > 0]
    new, old = FIRST["new"] + GAUC, FIRST["old"] + GAUC
    return estimate(*((table[:, new] - table[:, old]) / table[:, GAUC_WEIGHT] for table in (total, drawn)))


def relative_improvement(new: tuple[Floats, Floats], old: tuple[Floats, Floats]) -> Estimate | None:
    """Return RelaImpr (Zhou et al., Deep Interest Network, KDD 2018), or None if the old model is not above chance."""
    if old[0][0] <= 0.5 or old[1].min() <= 0.5:
        return None
    return estimate(*((n - 0.5) / (o - 0.5) - 1 for n, o in zip(new, old, strict=True)))


def estimate(value: Floats, drawn: Floats) -> Estimate:
    """Return a figure with its interval: the percentiles of the resamples.

    Args:
        value: The figure on the rows, (1).
        drawn: The figure on each resample, (draws).
    """
    tail = (1 - CONFIDENCE) / 2
    low, lower, upper, high = np.quantile(drawn, [tail, 2 * tail, 1 - 2 * tail, 1 - tail])
    return Estimate(float(value[0]), float(low), float(high), float(drawn.std(ddof=1)), float(lower), float(upper))


def deciles(ctr: Floats, weights: Floats) -> Segments:
    """Return up to ten bins of equal weight, lowest predictions first. Equal predictions share a bin."""
    codes = np.unique(equal_mass_bins(ctr, weights, DECILES), return_inverse=True)[1]
    return Segments([str(number + 1) for number in range(int(codes.max()) + 1)], codes)


def segment_figures(segments: Segments, rows: ScoredRows) -> tuple[SegmentFigures, ...]:
    """Return the calibration of the new model in each segment of a field, and the ratio of the old model.

    The intervals hold for all segments of the field together (Bonferroni). Otherwise, of a hundred segments of a
    perfect model, one would be outside its 99% interval.
    """
    confidence = 1 - (1 - SEGMENT_CONFIDENCE) / len(segments.names)
    new, old = (calibration(segments, rows, ctr, confidence) for ctr in (rows.new, rows.old))
    return tuple(msgspec.structs.replace(n, old_ratio=o.ratio) for n, o in zip(new, old, strict=True))


def calibration(segments: Segments, rows: ScoredRows, ctr: Floats, confidence: float) -> tuple[SegmentFigures, ...]:
    """Return predicted / observed in each segment that has rows.

    Args:
        segments: The segments.
        rows: The rows.
        ctr: The probabilities of the model, (rows).
        confidence: The confidence of the two-sided intervals.
    """
    inside = segments.codes >= 0
    code, weights, labels = segments.codes[inside], rows.weights[inside], rows.labels[inside]
    clusters, count = rows.clusters[inside], len(segments.names)
    size, clicked = np.bincount(code, minlength=count), np.bincount(code, labels, minlength=count)
    mass, predicted, observed = (
        np.bincount(code, values, minlength=count) for values in (weights, weights * ctr[inside], weights * labels)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = predicted / observed
        lower, upper = ratio_factors(code, clusters, weights * ctr[inside], weights * labels, confidence)
    # Without clicks, the bound is that of a Poisson distribution.
    bounds = np.bincount(code, ctr[inside], minlength=count) / poisson_interval(0, confidence)[1]
    found = []
    for number in np.flatnonzero(size).tolist():
        low = high = None
        if not clicked[number]:
            low = float(bounds[number])
        elif np.isfinite(upper[number]):
            low, high = float(ratios[number] * lower[number]), float(ratios[number] * upper[number])
        found.append(
            SegmentFigures(
                name=segments.names[number],
                rows=int(size[number]),
                clicks=int(clicked[number]),
                predicted=float(predicted[number] / mass[number]),
                observed=float(observed[number] / mass[number]),
                ratio=float(ratios[number]) if clicked[number] else None,
                low=low,
                high=high,
            )
        )
    return tuple(found)


def ratio_factors(
    code: NDArray[np.int64], clusters: NDArray[np.int64], predicted: Floats, observed: Floats, confidence: float
) -> tuple[Floats, Floats]:
    """Return the bounds of the interval of predicted / observed in each segment, divided by the ratio.

    The interval is that of the logarithm of the ratio, by the delta method: a cluster with the shares p of the
    segment's predictions and o of its clicks adds (p - o)^2 to the variance. With few clicks, the logarithm is not
    normal, and the interval of one segment in many would often be wrong. It is then at least as wide as that of a
    Poisson distribution with as many clicks as contain the same information, which is 1 / sum(o^2).

    Args:
        code: The segment of each row, (rows).
        clusters: The cluster of each row, (rows).
        predicted: The weighted prediction of each row, (rows).
        observed: The weighted click of each row, (rows).
        confidence: The confidence of the two-sided interval.

    Returns:
        The factors for the lower and the upper bound, up to the last segment with rows. Without clicks in at least two
        clusters, they are NaN, because one cluster says nothing about the variation between clusters.
    """
    # The sums of each segment in each cluster, then their shares of the segment.
    width = int(clusters.max(initial=0)) + 1
    pairs, pair = np.unique(code * width + clusters, return_inverse=True)
    of = pairs // width
    p, o = (
        np.bincount(pair, values, minlength=len(pairs)) / np.bincount(code, values)[of]
        for values in (predicted, observed)
    )
    parts = np.bincount(of)
    errors = np.sqrt(np.bincount(of, (p - o) ** 2) * parts / (parts - 1))
    factor = np.exp(stats.norm.ppf((1 + confidence) / 2) * errors)
    clicks = 1 / np.bincount(of, o**2)
    least, most = poisson_interval(clicks, confidence)
    is_few = clicks < FEW_CLICKS
    lower = np.where(is_few, np.minimum(1 / factor, clicks / most), 1 / factor)
    upper = np.where(is_few, np.maximum(factor, clicks / least), factor)
    is_known = np.bincount(of[o > 0], minlength=len(parts)) > 1
    return np.where(is_known, lower, np.nan), np.where(is_known, upper, np.nan)
