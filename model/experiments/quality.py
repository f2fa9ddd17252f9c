"""Warnings about a trained model that is not worth serving, and its quality on unseen values.

ctr-train prints the warnings and stores them in the run. ctr-export repeats them and stores them in the bundle, which
`ctr-store add` then refuses without --force.
"""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from contract.schema import FeatureSchema
from contract.vocabulary import UNKNOWN
from model.data.field_auc import LEAK_AUC, count_values, field_auc
from model.training.batches import Split, group_columns
from model.training.metrics import logloss_by_row, predicted_over_observed

CONFIDENCE_95 = 1.96  # standard errors on each side of a 95% interval
FIELD_LEAK_AUC = 0.99  # a single field with this AUC explains a model with LEAK_AUC
SAMPLE_ROWS = 100_000


@dataclass(frozen=True)
class UnseenValues:
    """The quality on the test rows in which all fields of a group have the unknown id, as for a new ad.

    Attributes:
        fields: The group, from Training.hide.
        rows: The number of these rows.
        logloss: The logloss, or None if there are no such rows.
        predicted_over_observed: The mean prediction divided by the click rate, or None if there are no clicks.
    """

    fields: tuple[str, ...]
    rows: int
    logloss: float | None = None
    predicted_over_observed: float | None = None


def measure_unseen(groups: tuple[tuple[str, ...], ...], test: Split, ctr: NDArray[np.float64]) -> list[UnseenValues]:
    """Return the quality on unseen values for each group of fields. `ctr` contains the predictions, (rows)."""
    measured = []
    for group, columns in zip(groups, group_columns(groups, test.names), strict=True):
        rows = np.flatnonzero((test.ids[:, columns] == UNKNOWN).all(1))
        unseen, weights = ctr[rows], test.metric_weights()
        weights = None if weights is None else weights[rows]
        labels = test.labels[rows].astype(np.float64)
        logloss = float(np.average(logloss_by_row(labels, unseen), weights=weights)) if len(rows) else None
        ratio = predicted_over_observed(labels, unseen, weights) if labels.any() else None
        measured.append(UnseenValues(group, len(rows), logloss, ratio))
    return measured


def base_rate_warning(name: str, split: Split, ctr: NDArray[np.float64]) -> str | None:
    """Return a warning if a model is not better than a constant prediction of the click rate, or None.

    The model is better if the 95% interval of the difference in logloss is below 0. The standard error is that of a
    weighted mean. If the log has units, the deviations of a unit's rows are added before they are squared, because
    these rows are not independent.

    Args:
        name: The name of the split.
        split: The split.
        ctr: The model's predictions, (rows).
    """
    weights = split.metric_weights()
    weights = np.ones(len(split)) if weights is None else weights
    rate = np.full(len(split), np.average(split.labels, weights=weights))
    model, base = logloss_by_row(split.labels, ctr), logloss_by_row(split.labels, rate)
    difference = float(np.average(model - base, weights=weights))
    deviations = weights * (model - base - difference)
    if split.units is not None:
        deviations = np.bincount(np.unique(split.units, return_inverse=True)[1], deviations).astype(np.float64)
    half = CONFIDENCE_95 * math.sqrt(np.square(deviations).sum()) / weights.sum()
    if difference + half < 0:
        return None
    verdict, advice = "worse", ""
    if difference - half <= 0:
        verdict = "not measurably better"
        clicks = np.count_nonzero(split.labels)
        advice = f"The split has {clicks:,} clicks, and with more of them the interval would be narrower. "
    return (
        f"the model is {verdict} than the base rate on {name}: logloss {np.average(model, weights=weights):.5f}, base "
        f"rate {np.average(base, weights=weights):.5f}, difference {difference:+.5f} ± {half:.5f}. "
        f"{advice}Raise training.net_l2 and training.embedding_l2, or let ctr-train --auto find them "
        "(docs/tuning.md). More training rows also help."
    )


def leak_warning(valid_auc: float, train: Split, schema: FeatureSchema) -> str | None:
    """Return a warning if a model predicts clicks too well to be true, or None.

    Args:
        valid_auc: The model's AUC on valid.
        train: The training rows.
        schema: The fields.
    """
    if valid_auc < LEAK_AUC:
        return None
    name, auc = best_single_field(train.sample(SAMPLE_ROWS), schema)
    culprit = "No single field predicts the label, so look for a combination of fields that does."
    if auc >= FIELD_LEAK_AUC:
        culprit = f'Field "{name}" alone has an AUC of {auc:.5f}. Remove it if it is not known before the click.'
    return f"valid AUC is {valid_auc:.5f}, so a field probably contains the label. {culprit}"


def best_single_field(rows: Split, schema: FeatureSchema) -> tuple[str, float]:
    """Return the field that predicts the label best on its own, and its AUC."""
    aucs: dict[str, float] = {}
    for column, field in enumerate(schema.select("categorical")):
        aucs[field.name] = field_auc(count_values(pl.Series(rows.ids[:, column]), rows.labels))
    for column, field in enumerate(schema.select("numeric")):
        numbers = pl.Series(rows.values[:, column]).fill_nan(None)
        aucs[field.name] = field_auc(count_values(numbers, rows.labels), numeric=True)
    name = max(aucs, key=lambda name: aucs[name])
    return name, aucs[name]
