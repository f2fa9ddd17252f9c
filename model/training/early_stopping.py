"""Early stopping: keeping the best epoch, and noticing when training no longer improves."""

import copy
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from model.experiment_config import Training
from model.training.metrics import Metrics

MIN_IMPROVEMENT = 1e-6  # of the monitored metric


@dataclass(frozen=True)
class Epoch:
    """What an epoch measured.

    Attributes:
        epoch: Its number, from 1.
        loss: The mean training loss (binary cross-entropy) without the L2 penalties.
        valid: The metrics on valid.
        learning_rate: The rate that the epoch was trained with.
        rows_per_s: Training rows per second, without the evaluation.
        improved: Whether it was the best epoch so far.
        wall_s: Seconds, with the evaluation.
    """

    epoch: int
    loss: float
    valid: Metrics
    learning_rate: float
    rows_per_s: float
    improved: bool
    wall_s: float | None = None


class EarlyStopping:
    """Keeps the best epoch's weights and counts the epochs in a row that did not improve.

    Training continues from the current weights, not from the best ones, as in the code base of the paper.
    """

    def __init__(self, recipe: Training) -> None:
        self._monitor, self._patience = recipe.monitor, recipe.patience
        self.score, self.failures = -np.inf, 0
        self.best: dict[str, Tensor] = {}

    @property
    def should_stop(self) -> bool:
        """Whether `patience` epochs in a row did not improve."""
        return self.failures >= self._patience

    def update(self, metrics: Metrics, model: nn.Module) -> bool:
        """Take note of an epoch and return whether it improved. If it did, copy the model's weights."""
        score = metrics.auc if self._monitor == "auc" else -metrics.logloss
        if score <= self.score + MIN_IMPROVEMENT:
            self.failures += 1
            return False
        self.score, self.failures = score, 0
        self.best = copy.deepcopy(model.state_dict())
        return True
