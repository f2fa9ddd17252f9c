"""EDCN: DCN's cross network and MLP, with a bridge between them at every layer (Chen et al., DLP-KDD 2021).

    regulate: x, y = BN(softmax(g / tau) * u), BN(softmax(h / tau) * u), u = e, then the bridge before
    cross = x + (w . x) x_0 + b        deep = ReLU(V y + c)        bridge = cross * deep
    logit = w . [cross; deep; bridge] + b, of the last layer

The softmax is over the fields, so there is one gate per field and stream. x_0 is the first layer's x.
NOTE[DIFF] Later versions of FuxiCTR have no residual in the cross network and cannot switch the gates off. BARS's
version had the residual and this option.
NOTE[DIFF] In FuxiCTR, the gradient of the loss vanishes for large logits, which this model can have (README.md).
Shape legend: model/layers.py; E = F * D.
"""

from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn

from model.layers import EmbeddingConfig, Fields, embeddings, initialize, look_up
from model.toml import Positive, Rate


class EDCNConfig(EmbeddingConfig, frozen=True, kw_only=True, tag="edcn"):
    """EDCN's keys.

    Attributes:
        layers: The number of layers in each of the two networks.
        regulation: Whether to gate the fields. The batch norms are always present.
        temperature: The temperature of the gates' softmax (tau).
        dropout: The dropout rate after each layer of the deep network.
    """

    layers: Positive = 3
    regulation: bool = True
    temperature: Annotated[float, Meta(gt=0)] = 5.0
    dropout: Rate = 0.0


class Regulation(nn.Module):
    """The inputs of a layer's two streams. Shape: (B, E) -> (B, E), (B, E)."""

    def __init__(self, fields: int, width: int, config: EDCNConfig) -> None:
        super().__init__()
        self.temperature, self.width = config.temperature, width
        self.gates = nn.Parameter(torch.ones(2, fields)) if config.regulation else None
        self.norms = nn.ModuleList(nn.BatchNorm1d(fields * width) for _ in range(2))

    def forward(self, x_BE: Tensor) -> tuple[Tensor, Tensor]:
        cross_norm, deep_norm = self.norms
        if self.gates is None:
            return cross_norm(x_BE), deep_norm(x_BE)
        cross_E, deep_E = (self.gates / self.temperature).softmax(1).repeat_interleave(self.width, 1)
        return cross_norm(cross_E * x_BE), deep_norm(deep_E * x_BE)


class EDCN(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: EDCNConfig) -> None:
        super().__init__()
        width = fields.count * config.embedding
        layers = range(config.layers)
        self.embeddings = embeddings(fields, config, [config.embedding])
        self.regulations = nn.ModuleList(Regulation(fields.count, config.embedding, config) for _ in layers)
        self.crosses = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in layers)
        self.shifts = nn.ParameterList(torch.zeros(width) for _ in layers)
        self.deeps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(config.dropout)) for _ in layers
        )
        self.out = nn.Linear(3 * width, 1)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs the fields of both sides."""
        bridge_BE, first_BE = x_BFD.flatten(1), None
        layers = zip(self.regulations, self.crosses, self.shifts, self.deeps, strict=True)
        for regulate, cross, shift_E, deep in layers:
            cross_BE, deep_BE = regulate(bridge_BE)
            first_BE = cross_BE if first_BE is None else first_BE
            cross_BE = cross_BE + cross(cross_BE) * first_BE + shift_E
            deep_BE = deep(deep_BE)
            bridge_BE = cross_BE * deep_BE
        logit_B: Tensor = self.out(torch.cat([cross_BE, deep_BE, bridge_BE], 1))[:, 0]
        return logit_B
