"""FiBiNET: bilinear interactions of the embeddings and of re-weighted embeddings (Huang et al., RecSys 2019).

    v = e * A(mean_d e), where A is two layers with ReLU and without biases ("SENet")
    p_ij = (e_i W) * e_j        q_ij = (v_i W') * v_j, i < j        logit = sum_i w_i + MLP([p; q])

There is one matrix W for all pairs ("field_all"), or one per pair ("field_interaction").
NOTE[DIFF] BARS's version used the same matrix in p and q. The paper and later versions of FuxiCTR use two matrices.
Shape legend: model/layers.py; P pairs.
"""

from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, embeddings, initialize, look_up, number_of_pairs, pairs


class FiBiNETConfig(BaselineConfig, frozen=True, kw_only=True, tag="fibinet"):
    """FiBiNET's keys.

    Attributes:
        bilinear: Whether all pairs of fields share one matrix W ("field_all") or each pair has its own
            ("field_interaction").
        reduction: The ratio of the number of fields to the number of hidden units of SENet.
    """

    bilinear: Literal["field_all", "field_interaction"] = "field_all"
    reduction: Annotated[float, Meta(ge=0.001, le=1000)] = 2.0


class FiBiNET(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: FiBiNETConfig) -> None:
        super().__init__()
        width, count = config.embedding, number_of_pairs(fields)
        units = max(1, int(fields.count / config.reduction))
        squeeze, excite = nn.Linear(fields.count, units, bias=False), nn.Linear(units, fields.count, bias=False)
        matrices = 1 if config.bilinear == "field_all" else count
        self.embeddings = embeddings(fields, config, [width, 1])
        self.senet = nn.Sequential(squeeze, nn.ReLU(), excite, nn.ReLU())
        self.bilinear = nn.ParameterList(torch.empty(matrices, width, width) for _ in range(2))
        self.mlp = deep(2 * count * width, config)
        self.apply(initialize)
        for matrices_PDD in self.bilinear:
            for matrix_DD in matrices_PDD:
                nn.init.xavier_normal_(matrix_DD)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor, weight_BF1: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        reweighted_BFD = x_BFD * self.senet(x_BFD.mean(2))[:, :, None]
        products = [bilinear_products(x, w) for x, w in zip((x_BFD, reweighted_BFD), self.bilinear, strict=True)]
        deep_B: Tensor = self.mlp(torch.cat(products, 1))[:, 0]
        return weight_BF1.sum((1, 2)) + deep_B


def bilinear_products(x_BFD: Tensor, matrices_PDD: Tensor) -> Tensor:
    """Return (x_i W) * x_j for all pairs. Shape: (B, P * D)."""
    first_BPD, second_BPD = pairs(x_BFD)
    projected_PBD = first_BPD.transpose(0, 1) @ matrices_PDD
    return (projected_PBD.transpose(0, 1) * second_BPD).flatten(1)
