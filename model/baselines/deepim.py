"""DeepIM: all interactions up to a given order, computed from sums of powers, and an MLP (Yu et al., CIKM 2020).

    p_k = sum_i e_i^k        k I_k = sum_{m=1..k} (-1)^{m-1} I_{k-m} p_m, I_0 = 1        (Newton's identities)
    logit = w . [I_1; ...; I_K] + b + MLP(e)

I_k is the sum of the element-wise products of all sets of k fields. Shape legend: model/layers.py.
"""

import torch
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, embeddings, initialize, look_up
from model.toml import Positive


class DeepIMConfig(BaselineConfig, frozen=True, kw_only=True, tag="deepim"):
    """DeepIM's keys.

    Attributes:
        order: K.
        interaction_batch_norm: Whether the interactions pass through a batch norm before they are weighted by w.
    """

    order: Positive = 3
    interaction_batch_norm: bool = False


class DeepIM(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: DeepIMConfig) -> None:
        super().__init__()
        width = config.order * config.embedding
        self.order = config.order
        self.embeddings = embeddings(fields, config, [config.embedding])
        norm = [nn.BatchNorm1d(width)] if config.interaction_batch_norm else []
        self.out = nn.Sequential(*norm, nn.Linear(width, 1))
        self.mlp = deep(fields.count * config.embedding, config)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        logit_B: Tensor = self.out(torch.cat(interactions(x_BFD, self.order), 1))[:, 0]
        deep_B: Tensor = self.mlp(x_BFD.flatten(1))[:, 0]
        return logit_B + deep_B


def interactions(x_BFD: Tensor, order: int) -> list[Tensor]:
    """Return I_1 to I_order, each of shape (B, D)."""
    powers = [x_BFD.pow(k).sum(1) for k in range(1, order + 1)]
    found = [torch.ones_like(powers[0])]
    for k in range(1, order + 1):
        terms = [(-1) ** (m - 1) * found[k - m] * powers[m - 1] for m in range(1, k + 1)]
        found.append(torch.stack(terms).sum(0) / k)
    return found[1:]
