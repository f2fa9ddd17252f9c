"""Early stopping: keeping the best weights, and detecting when training no longer improves."""

import copy
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from model.experiment_config import Training
from model.training.metrics import Metrics

MIN_IMPROVEMENT = 1e-6  # the smallest change of the monitored metric that counts


@dataclass(frozen=True)
class Epoch:
    """The measurements of an epoch or, with Training.evaluations_per_epoch above 1, of a part of it.

    Attributes:
        epoch: The number of the epoch, from 1.
        loss: The mean training loss (binary cross-entropy), without the L2 penalties.
        valid: The metrics on the validation set of the weights that Training.weights selects.
        learning_rate: The learning rate during the epoch.
        rows_per_s: The training speed in rows per second, excluding evaluation.
        improved: Whether these were the best weights so far.
        wall_s: The duration in seconds, including evaluation.
        part: The share of the epoch that was trained before the evaluation, up to 1.
        other_valid: The metrics on the validation set of the other weights, if there are two (Training.ema_half_life).
        other_improved: Whether these were the best of the other weights so far.
    """

    epoch: int
    loss: float
    valid: Metrics
    learning_rate: float
    rows_per_s: float
    improved: bool
    wall_s: float | None = None
    part: float = 1.0
    other_valid: Metrics | None = None
    other_improved: bool = False

    @property
    def end(self) -> float:
        """The number of epochs that were trained before the evaluation, such as 2.5."""
        return self.epoch - 1 + self.part

    def __str__(self) -> str:
        return epoch_text(self.end)


def epoch_text(end: float) -> str:
    """Format a number of epochs: 3, or 2.33 in the middle of an epoch."""
    return f"{end:.0f}" if end == round(end) else f"{end:.2f}"


def score_of(metrics: Metrics, recipe: Training) -> float:
    """Return the monitored metric of a split, with a sign such that higher is better."""
    return metrics.auc if recipe.monitor == "auc" else -metrics.logloss


class EarlyStopping:
    """Keeps the best weights and counts consecutive evaluations without improvement.

    Training continues from the current weights, not from the best ones, as in the paper's code base.
    """

    def __init__(self, recipe: Training) -> None:
        self._recipe = recipe
        self.score, self.failures = -np.inf, 0
        self.best: dict[str, Tensor] = {}

    @property
    def should_stop(self) -> bool:
        """Whether there were `patience` consecutive evaluations without improvement."""
        return self.failures >= self._recipe.patience

    def update(self, metrics: Metrics, model: nn.Module) -> bool:
        """Record an evaluation's metrics and return whether they improved. If so, copy the model's weights."""
        score = score_of(metrics, self._recipe)
        if score <= self.score + MIN_IMPROVEMENT:
            self.failures += 1
            return False
        self.score, self.failures = score, 0
        self.best = copy.deepcopy(model.state_dict())
        return True
