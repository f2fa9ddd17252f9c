"""Plots for runs, reports and leaderboards."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from model.training.early_stopping import Epoch
from model.training.metrics import Bin

DPI = 120


def draw_curves(histories: Sequence[Sequence[Epoch]], path: Path | BinaryIO) -> None:
    """Plot training loss, validation logloss and validation AUC over the epochs, with one line per run.

    If two weights were evaluated, the metrics of the weights that were not selected are dotted.
    """
    mpl.use("agg")
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    aucs = losses.twinx()
    alpha = 1.0 if len(histories) == 1 else 0.5
    for number, history in enumerate(histories):
        epochs = [e.end for e in history]
        label = ("train loss", "valid logloss", "valid AUC") if number == 0 else ("", "", "")
        losses.plot(epochs, [e.loss for e in history], "C0", label=label[0], alpha=alpha)
        losses.plot(epochs, [e.valid.logloss for e in history], "C1", label=label[1], alpha=alpha)
        aucs.plot(epochs, [e.valid.auc for e in history], "k--", label=label[2], alpha=alpha)
        others = [(e.end, e.other_valid) for e in history if e.other_valid is not None]
        ends = [end for end, _ in others]
        losses.plot(ends, [valid.logloss for _, valid in others], "C1:", alpha=alpha)
        aucs.plot(ends, [valid.auc for _, valid in others], "k:", alpha=alpha)
    losses.set(xlabel="epoch", ylabel="logloss")
    aucs.set(ylabel="AUC")
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=DPI, format="png")


def draw_reliability(runs: Sequence[Sequence[Bin]], path: Path | BinaryIO) -> None:
    """Plot the click rate of each bin over its mean prediction, with one line per run.

    For a calibrated model, the points are on the diagonal.
    """
    mpl.use("agg")
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for bins in runs:
        axes.plot([b.predicted for b in bins], [b.observed for b in bins], "C0o-", markersize=4, alpha=0.5)
    top = max(max(b.predicted, b.observed) for bins in runs for b in bins)
    axes.plot(np.array([0, top]), np.array([0, top]), "k:", label="calibrated")
    axes.set(xlabel="mean prediction of the bin", ylabel="click rate of the bin", aspect="equal")
    axes.legend()
    figure.savefig(path, dpi=DPI, format="png")


def draw_auc_over_cost(points: Sequence[tuple[str, float, float]], cost: str, highlighted: str, path: BinaryIO) -> None:
    """Plot the AUC of each model over its cost. The AUC axis has a logit scale, which spreads out values near 100%.

    Args:
        points: Name, cost and AUC of each model, in the order of the legend. A model with cost 0, such as LR with 0
            FLOPs, is plotted at the left edge.
        cost: The label of the cost axis.
        highlighted: The name of the model to plot in another color.
        path: The PNG file to write.
    """
    mpl.use("agg")
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    left_edge = min((x for _, x, _ in points if x > 0), default=1) / 3
    for number, (name, x, auc) in enumerate(points, 1):
        color = "C3" if name == highlighted else "C0"
        position = (max(x, left_edge), auc)
        axes.plot(*position, "o", markersize=4, color=color, label=f"{number}  {name}")
        axes.annotate(str(number), position, (3, 3), textcoords="offset points", fontsize=7, color=color)
    axes.set(xscale="log", yscale="logit", xlabel=f"{cost} (log scale)", ylabel="mean test AUC, % (logit scale)")
    axes.yaxis.set_major_locator(MaxNLocator(12))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, handlelength=1)
    figure.savefig(path, dpi=DPI, format="png")
