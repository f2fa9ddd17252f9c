"""Early stopping: keeping the best epoch, and detecting when training no longer improves."""

import copy
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from model.experiment_config import Training
from model.training.metrics import Metrics

MIN_IMPROVEMENT = 1e-6  # the smallest change of the monitored metric that counts


@dataclass(frozen=True)
class Epoch:
    """The measurements of an epoch.

    Attributes:
        epoch: The number of the epoch, from 1.
        loss: The mean training loss (binary cross-entropy), without the L2 penalties.
        valid: The metrics on the validation set.
        learning_rate: The learning rate during the epoch.
        rows_per_s: The training speed in rows per second, excluding evaluation.
        improved: Whether this was the best epoch so far.
        wall_s: The duration in seconds, including evaluation.
    """

    epoch: int
    loss: float
    valid: Metrics
    learning_rate: float
    rows_per_s: float
    improved: bool
    wall_s: float | None = None


def score_of(metrics: Metrics, recipe: Training) -> float:
    """Return the monitored metric of a split, with a sign such that higher is better."""
    return metrics.auc if recipe.monitor == "auc" else -metrics.logloss


class EarlyStopping:
    """Keeps the best epoch's weights and counts consecutive epochs without improvement.

    Training continues from the current weights, not from the best ones, as in the paper's code base.
    """

    def __init__(self, recipe: Training) -> None:
        self._recipe = recipe
        self.score, self.failures = -np.inf, 0
        self.best: dict[str, Tensor] = {}

    @property
    def should_stop(self) -> bool:
        """Whether there were `patience` consecutive epochs without improvement."""
        return self.failures >= self._recipe.patience

    def update(self, metrics: Metrics, model: nn.Module) -> bool:
        """Record an epoch's metrics and return whether they improved. If so, copy the model's weights."""
        score = score_of(metrics, self._recipe)
        if score <= self.score + MIN_IMPROVEMENT:
            self.failures += 1
            return False
        self.score, self.failures = score, 0
        self.best = copy.deepcopy(model.state_dict())
        return True
