"""Starting a model at the click rate of the training set.

A model whose output starts at a probability of 0.5 spends its first epochs on learning that clicks are rare, and
meanwhile overfits its other weights. Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), section 3.3, start
the output's bias at the log-odds of the rare class.
"""

import numpy as np
import torch
from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]
from torch import nn

from model.experiment_config import Training
from model.training.batches import Split
from model.training.exact_statistics import measure_batch_norms
from model.training.fit import predict_logits

MAX_ROWS = 16_384  # enough to estimate the mean prediction of an untrained model within about a percent


def start_at_click_rate(model: nn.Module, train: Split, recipe: Training) -> None:
    """Set the output bias such that the mean prediction on train is its click rate, before any negatives were dropped.

    If the untrained model's logits are near 0, this is the log-odds of the click rate. The logits of models with layer
    norms or batch norms are not near 0, so the bias is computed from the predictions on a sample of train. The batch
    norms start with the statistics of this sample. No random numbers are drawn from the global or the training
    generator.

    Args:
        model: A new model.
        train: The training rows.
        recipe: The [training] section.
    """
    sample = train.sample(MAX_ROWS)
    weights = sample.log_weights()
    measure_batch_norms(model, sample, recipe)
    logits = predict_logits(model, sample).numpy()
    rate = np.average(train.labels, weights=train.log_weights())
    log_odds = np.log(rate / (1 - rate))

    def excess(bias: float) -> float:
        """The difference between the mean prediction with this bias and the click rate."""
        return float(np.average(expit(logits + bias), weights=weights) - rate)

    bias = log_odds - logits.mean()
    if logits.min() < logits.max():
        bias = brentq(excess, log_odds - logits.max(), log_odds - logits.min())
    with torch.no_grad():
        output_bias(model).add_(bias)


def output_bias(model: nn.Module) -> nn.Parameter:
    """Return the parameter that a model adds to the logit of every row.

    It is the model's `bias`, or the bias of the last layer of its `out`, `head` or `mlp`.
    """
    if isinstance(bias := getattr(model, "bias", None), nn.Parameter):
        return bias
    part = next(getattr(model, name) for name in ("out", "head", "mlp") if hasattr(model, name))
    last = part if isinstance(part, nn.Linear) else part[-1]
    assert isinstance(last.bias, nn.Parameter)
    return last.bias
