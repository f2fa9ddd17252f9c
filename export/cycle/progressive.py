"""Progressive validation: how the served version predicts a day that no model has been trained on."""

from pathlib import Path

import msgspec
import polars as pl

from export.predict.predict import CTR
from model.training.metrics import Metrics, evaluate


class Progressive(msgspec.Struct, frozen=True):
    """The quality of the served version on the day.

    Attributes:
        version: The version.
        rows: The number of impressions.
        clicks: The number of clicks.
        metrics: The metrics, or None if the day has only clicks or only non-clicks.
    """

    version: str
    rows: int
    clicks: int
    metrics: Metrics | None


def progressive_validation(scored: Path, version: str, label: str, weight: str, unit: str) -> Progressive:
    """Return the metrics of predictions for a day.

    Args:
        scored: The file that ctr-predict wrote, with these columns.
        version: The version that predicted.
        label: The column with the clicks.
        weight: The column with the weights of the rows, or "".
        unit: The column with the units, or "".
    """
    rows = pl.read_parquet(scored, glob=False)
    labels = rows[label].cast(pl.Float32).to_numpy()
    clicks = int(labels.sum())
    if clicks in (0, len(labels)):
        return Progressive(version, len(labels), clicks, None)
    weights = rows[weight].cast(pl.Float64).to_numpy() if weight else None
    units = rows[unit].cast(pl.String).fill_null("").to_physical().rank("dense").to_numpy() if unit else None
    metrics = evaluate(labels, rows[CTR].to_numpy(), weights, units)
    return Progressive(version, len(labels), clicks, metrics)
