"""LR: logistic regression with a weight for each value (Richardson et al., Predicting Clicks, WWW 2007).

    logit = b + sum_i w_i

Shape legend: model/layers.py.
"""

import torch
from torch import Tensor, nn

from model.layers import Fields, TableConfig, embeddings, look_up


class LRConfig(TableConfig, frozen=True, kw_only=True, tag="lr"):
    """LR's keys, all of which are inherited from TableConfig."""


class LR(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: LRConfig) -> None:
        super().__init__()
        self.embeddings = embeddings(fields, config, [1])
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, weight_BF1: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        return weight_BF1.sum((1, 2)) + self.bias
