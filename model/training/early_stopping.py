"""When training has stopped getting better."""

import copy
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from model.experiment_config import Training
from model.training.metrics import Metrics

SMALLEST_GAIN = 1e-6  # of the monitored metric, to count as an improvement


@dataclass(frozen=True)
class Epoch:
    """loss: mean training BCE without the L2. rows_per_s: of training alone. wall_s: evaluation included."""

    epoch: int
    loss: float
    valid: Metrics
    learning_rate: float
    rows_per_s: float
    improved: bool
    wall_s: float | None = None


class Plateau:
    """Keeps the best epoch's weights, and counts the epochs in a row that were no better.

    Training goes on from the current weights, not from the best ones: so did the paper's code base.
    """

    def __init__(self, recipe: Training) -> None:
        self._monitor, self._patience = recipe.monitor, recipe.patience
        self.score, self.failures = -np.inf, 0
        self.best: dict[str, Tensor] = {}

    @property
    def over(self) -> bool:
        return self.failures >= self._patience

    def judge(self, metrics: Metrics, model: nn.Module) -> bool:
        """Whether the epoch was better than the best before it."""
        score = metrics.auc if self._monitor == "auc" else -metrics.logloss
        if score <= self.score + SMALLEST_GAIN:
            self.failures += 1
            return False
        self.score, self.failures = score, 0
        self.best = copy.deepcopy(model.state_dict())
        return True
