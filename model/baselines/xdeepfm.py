"""xDeepFM: a compressed interaction network in parallel with an MLP (Lian et al., KDD 2018).

    X^k_h = sum_{i,j} W^{k,h}_ij (X^0_i * X^{k-1}_j) + b^k_h        CIN = w . [sum over D of X^k_h] + b
    logit = sum_i w_i + CIN + MLP(e)

NOTE[DIFF] As in BARS, there is no activation and no split between layers, and the layers have biases. FuxiCTR 1.x, and
therefore BARS, keeps torch's default initialization of these layers, because they are convolutions. Here, as in FuxiCTR
2, they are initialized like any other linear layer.
Shape legend: model/layers.py; H feature maps per layer.
"""

from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, embeddings, initialize, look_up
from model.toml import Positive


class XDeepFMConfig(BaselineConfig, frozen=True, kw_only=True, tag="xdeepfm"):
    """xDeepFM's keys.

    Attributes:
        cin: The number of feature maps in each layer of the compressed interaction network.
    """

    cin: Annotated[tuple[Positive, ...], Meta(min_length=1)] = (64,)


class XDeepFM(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: XDeepFMConfig) -> None:
        super().__init__()
        before = [fields.count, *config.cin[:-1]]
        self.embeddings = embeddings(fields, config, [config.embedding, 1])
        sizes = zip(before, config.cin, strict=True)
        self.cin = nn.ModuleList(nn.Linear(fields.count * maps, new) for maps, new in sizes)
        self.cin_out = nn.Linear(sum(config.cin), 1)
        self.mlp = deep(fields.count * config.embedding, config)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor, weight_BF1: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        deep_B: Tensor = self.mlp(x_BFD.flatten(1))[:, 0]
        return weight_BF1.sum((1, 2)) + self.compressed_interaction(x_BFD) + deep_B

    def compressed_interaction(self, x_BFD: Tensor) -> Tensor:
        """Return the CIN's contribution to the logit. Shape: (B, F, D) -> (B)."""
        pooled, maps_BHD = [], x_BFD
        for compress in self.cin:
            products_BDFH = x_BFD.transpose(1, 2)[:, :, :, None] * maps_BHD.transpose(1, 2)[:, :, None, :]
            maps_BHD = compress(products_BDFH.flatten(2)).transpose(1, 2)
            pooled.append(maps_BHD.sum(2))
        logit_B: Tensor = self.cin_out(torch.cat(pooled, 1))[:, 0]
        return logit_B
