"""FM: the factorization machine (Rendle, ICDM 2010), in its linear-time form.

    logit = b + sum_i w_i + sum_{i<j} <e_i, e_j>

Shape legend: model/layers.py.
"""

import torch
from torch import Tensor, nn

from model.layers import EmbeddingConfig, Fields, embeddings, look_up, sum_of_pairs


class FMConfig(EmbeddingConfig, frozen=True, kw_only=True, tag="fm"):
    """FM's keys, all of which are inherited from EmbeddingConfig."""


class FM(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: FMConfig) -> None:
        super().__init__()
        self.embeddings = embeddings(fields, config, [config.embedding, 1])
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor, weight_BF1: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        return sum_of_pairs(x_BFD).sum(1) + weight_BF1.sum((1, 2)) + self.bias
