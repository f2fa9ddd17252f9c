"""IPNN: an MLP whose inputs include inner products of fields (Qu et al., Product-based Neural Networks, ICDM 2016).

    g_ij = <e_i, e_j>, i < j        logit = MLP([e; g])

NOTE[DIFF] The paper factorizes the product layer. FuxiCTR and BARS use the products directly.
Shape legend: model/layers.py; P pairs.
"""

import torch
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, embeddings, initialize, look_up, number_of_pairs, pairs


class IPNNConfig(BaselineConfig, frozen=True, kw_only=True, tag="ipnn"):
    """IPNN's keys, all of which are inherited from BaselineConfig."""


class IPNN(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: IPNNConfig) -> None:
        super().__init__()
        self.embeddings = embeddings(fields, config, [config.embedding])
        self.mlp = deep(fields.count * config.embedding + number_of_pairs(fields), config)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        first_BPD, second_BPD = pairs(x_BFD)
        product_BP = (first_BPD * second_BPD).sum(2)
        logit_B: Tensor = self.mlp(torch.cat([x_BFD.flatten(1), product_BP], 1))[:, 0]
        return logit_B
