"""Plotting explanations: the attention of every head, and what each pair of fields adds to the logit."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from export.explain.explanation import Explanation, readable

DPI = 150
MAX_ROWS = 8  # the maximum number of explanations in one picture
MAX_NUMBERED_FIELDS = 12  # with more fields, numbers in the cells would be unreadable
SMALL, MEDIUM, LARGE = 6, 7, 11  # font sizes in points


def draw(explanations: Sequence[Explanation], path: Path) -> None:
    """Write a PNG with one row per explanation. A row shows attention maps and pairs of fields, or the fields' shares.

    Raises:
        ValueError: If there are more than eight explanations.
    """
    if len(explanations) > MAX_ROWS:
        raise ValueError(
            f"{path}: {len(explanations)} candidates, but a picture shows at most {MAX_ROWS}. Choose one with "
            "--candidate, or specify a folder (without .png) to get one picture per candidate."
        )
    attention, pairs, height = sizes_in(explanations[0])
    figure = Figure(figsize=(attention + pairs, height * len(explanations)), layout="constrained")
    rows = figure.subfigures(len(explanations), 1, squeeze=False)[:, 0]
    for row, explanation in zip(rows, explanations, strict=True):
        row.suptitle(title(explanation), fontsize=LARGE, parse_math=False)
        if explanation.is_of_shares:
            draw_shares(row, explanation)
            continue
        left, right = row.subfigures(1, 2, width_ratios=[attention, pairs])
        draw_attention(left, explanation)
        draw_pairs(right, explanation)
    with warnings.catch_warnings():
        # Characters missing from the font are drawn as boxes. The table shows the characters themselves.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(path, dpi=DPI, format="png")


def sizes_in(explanation: Explanation) -> tuple[float, float, float]:
    """Return the widths of the attention maps and of the pairs, and their height, in inches.

    The sizes leave enough space for the name of every field.
    """
    fields = len(explanation.fields)
    if explanation.is_of_shares:
        return 2.0, 5.0, 1.0 + 0.25 * fields
    rows, columns = map_grid(explanation)
    pairs = max(4.0, 0.2 * fields)
    attention = max(2.0, 0.11 * fields, min(pairs / rows, 7.0 / columns))
    return columns * attention + 1.6, pairs + 3.0, max(rows * attention + 1.0, pairs + 1.0)


def map_grid(explanation: Explanation) -> tuple[int, int]:
    """Return the numbers of rows and columns of attention maps: one row per block, or a square for a single block."""
    blocks, heads = explanation.attention.shape[:2]
    columns = heads if blocks > 1 else math.ceil(math.sqrt(heads))
    return math.ceil(blocks * heads / columns), columns


def title(explanation: Explanation) -> str:
    """Return the title of an explanation."""
    pairs = float(explanation.contribution.sum())
    what = "fields" if explanation.is_of_shares else "pairs"
    summed = f"logit {explanation.logit:.3f} = bias {explanation.bias:.3f} + {what} {pairs:+.3f}"
    return f"{readable(str(explanation.id))}: click probability {explanation.ctr:.4f}   ({summed})"


def draw_attention(part: Any, explanation: Explanation) -> None:
    """Plot the attention maps, all with the same color scale.

    The scale extends to at least twice the weight of uniform attention, so that uniform attention looks uniform.
    """
    rows, columns = map_grid(explanation)
    axes = part.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    blocks, heads, fields, _ = explanation.attention.shape
    darkest = max(explanation.attention.max(), 2 / fields)
    for number, axis in enumerate(axes.flat):
        if number >= blocks * heads:
            axis.set_axis_off()
            continue
        block, head = divmod(number, heads)
        weight_FF = explanation.attention[block, head]
        image = axis.imshow(weight_FF, cmap="Blues", vmin=0, vmax=darkest)
        axis.set_title(f"block {block + 1}, head {head + 1}: up to {weight_FF.max():.3f}", fontsize=MEDIUM)
        axis.set_xticks(range(fields), explanation.names(), rotation=90, fontsize=SMALL)
        axis.set_yticks(range(fields), explanation.names(), fontsize=SMALL)
    part.suptitle("attention: how much each field (row) attends to each other (column)", fontsize=MEDIUM)
    bar = part.colorbar(image, ax=axes, shrink=0.6)
    bar.set_label("weight; a row sums to 1", fontsize=MEDIUM)
    bar.ax.tick_params(labelsize=SMALL)


def draw_pairs(part: Any, explanation: Explanation) -> None:
    """Plot each pair's contribution, summed over both orders, below the diagonal.

    Red raises the probability, and blue lowers it.
    """
    pairs_FF = explanation.both_orders().sum(0)
    limit = float(np.abs(pairs_FF).max()) or 1.0
    shown_FF = np.where(np.tri(len(pairs_FF), dtype=bool), pairs_FF, np.nan)
    axis = part.subplots()
    image = axis.imshow(shown_FF, cmap="RdBu_r", vmin=-limit, vmax=limit)
    fields = range(len(explanation.fields))
    part.suptitle("contributions: what each pair of fields adds to the logit", fontsize=MEDIUM)
    axis.set_xticks(fields, explanation.names(), rotation=90, fontsize=MEDIUM)
    axis.set_yticks(fields, explanation.labels(), fontsize=MEDIUM, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    if len(fields) <= MAX_NUMBERED_FIELDS:
        write_numbers(axis, shown_FF, limit)
    bar = part.colorbar(image, ax=axis, shrink=0.6)
    bar.set_label("contribution: blue lowers, red raises", fontsize=MEDIUM)
    bar.ax.tick_params(labelsize=SMALL)


def draw_shares(part: Any, explanation: Explanation) -> None:
    """Plot a bar for each field, in serving order. Red raises the probability, and blue lowers it."""
    share_F = np.diagonal(explanation.contribution[0])
    axis = part.subplots()
    axis.barh(range(len(share_F)), share_F, color=np.where(share_F > 0, "C3", "C0"))
    axis.set_yticks(range(len(share_F)), explanation.labels(), fontsize=MEDIUM, parse_math=False)
    axis.invert_yaxis()
    axis.axvline(0, color="black", linewidth=0.5)
    axis.set_xlabel("the field's share of the logit", fontsize=MEDIUM)


def write_numbers(axis: Any, shown_FF: NDArray[np.float64], limit: float) -> None:
    """Write the numbers in the cells, using white text on dark colors."""
    for (row, column), value in np.ndenumerate(shown_FF):
        if not np.isnan(value):
            color = "white" if abs(value) > 0.6 * limit else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=SMALL, color=color)
