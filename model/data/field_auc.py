"""How well a single field predicts the label: the distinct values of a column with their clicks, and their AUC.

ctr-inspect, ctr-prepare and ctr-train warn if a field alone predicts clicks too well to be true.
"""

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray

LEAK_AUC = 0.999  # nothing that is known before the click predicts clicks this well
MIN_CLASS_ROWS = 20  # the AUC is measured only with this many clicks and non-clicks


def count_values(values: pl.Series, labels: NDArray[np.generic] | None = None) -> pl.DataFrame:
    """Return the distinct values of a column with their rows and clicks, most frequent first.

    About half of the rows is held back, so that a value's click rate in one half can predict the labels of the other
    half. A hash of the row's number selects them.

    Args:
        values: The column. Null means missing and is a value like any other.
        labels: The labels, 0 or 1, (rows). None means no clicks.

    Returns:
        The columns value, rows, clicks, held_rows and held_clicks. The latter two count only the rows held back.
    """
    clicks = np.zeros(len(values), np.int64) if labels is None else labels.astype(np.int64)
    held = pl.int_range(len(values), dtype=pl.UInt64, eager=True).hash().to_numpy().astype(np.int64) % 2
    # For small columns, numpy is several times faster than polars' group_by, which waits for its thread pool.
    codes = values.cast(pl.Categorical).to_physical() if values.dtype == pl.String else values
    distinct, group = np.unique(codes.to_numpy(), return_inverse=True)
    row = np.empty(len(distinct), np.int64)
    row[group] = np.arange(len(values))  # a row that holds the value
    counts = np.bincount(4 * group + 2 * clicks + held, minlength=4 * len(distinct)).reshape(-1, 2, 2)
    by_rows = np.argsort(-counts.sum((1, 2)), kind="stable")
    counts = counts[by_rows]
    return pl.DataFrame(
        {
            "value": values.gather(row[by_rows]),
            "rows": counts.sum((1, 2)),
            "clicks": counts[:, 1].sum(1),
            "held_rows": counts[:, :, 1].sum(1),
            "held_clicks": counts[:, 1, 1],
        }
    )


def field_auc(counts: pl.DataFrame, numeric: bool = False) -> float:
    """Return the AUC of a field alone, or 0.5 if there are too few clicks or non-clicks to measure it.

    Args:
        counts: The field's values (see count_values()).
        numeric: Whether the values are numbers, so that larger ones may mean more or fewer clicks.
    """
    return max(held_back_auc(counts), ordered_auc(counts)) if numeric else held_back_auc(counts)


def held_back_auc(counts: pl.DataFrame) -> float:
    """Return the AUC of a value's click rate, measured on the rows held back. It is 0.5 if a class has too few rows."""
    fit_rows, fit_clicks = counts["rows"] - counts["held_rows"], counts["clicks"] - counts["held_clicks"]
    base = int(fit_clicks.sum()) / max(int(fit_rows.sum()), 1)
    rate = (fit_clicks + base) / (fit_rows + 1)
    return counted_auc(rate.to_numpy(), counts["held_rows"].to_numpy(), counts["held_clicks"].to_numpy())


def ordered_auc(counts: pl.DataFrame) -> float:
    """Return the AUC of a numeric column's value or of its negative, with missing values at either end."""
    rows, clicks = counts["rows"].to_numpy(), counts["clicks"].to_numpy()
    numbers = counts["value"].cast(pl.Float64)
    both = [counted_auc(numbers.fill_null(end).to_numpy(), rows, clicks) for end in (-math.inf, math.inf)]
    return max(max(auc, 1 - auc) for auc in both)


def counted_auc(score: NDArray[np.float64], rows: NDArray[np.int64], clicks: NDArray[np.int64]) -> float:
    """Return the AUC of groups of rows with the same score, or 0.5 if there are too few clicks or non-clicks."""
    others = rows - clicks
    if min(clicks.sum(), others.sum()) < MIN_CLASS_ROWS:
        return 0.5
    _, group = np.unique(score, return_inverse=True)
    clicks, others = np.bincount(group, clicks), np.bincount(group, others)
    lower = np.cumsum(others) - others
    return float((clicks * (lower + others / 2)).sum() / (clicks.sum() * others.sum()))
