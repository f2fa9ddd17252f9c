"""DCN: a cross network in parallel with an MLP (Wang et al., ADKDD 2017).

    c_0 = e        c_{l+1} = c_l + (w_l . c_l) c_0 + b_l        logit = w . [c_L; MLP(e)] + b

Shape legend: model/layers.py; E = F * D.
"""

import torch
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, deep_width, embeddings, initialize, look_up
from model.toml import Positive


class DCNConfig(BaselineConfig, frozen=True, kw_only=True, tag="dcn"):
    """DCN's keys.

    Attributes:
        cross_layers: L.
    """

    cross_layers: Positive = 3


class DCN(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: DCNConfig) -> None:
        super().__init__()
        width = fields.count * config.embedding
        self.embeddings = embeddings(fields, config, [config.embedding])
        self.crosses = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in range(config.cross_layers))
        self.shifts = nn.ParameterList(torch.zeros(width) for _ in range(config.cross_layers))
        self.mlp = deep(width, config, output=None)
        self.out = nn.Linear(width + deep_width(width, config), 1)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        first_BE = x_BFD.flatten(1)
        crossed_BE = first_BE
        for cross, shift_E in zip(self.crosses, self.shifts, strict=True):
            crossed_BE = crossed_BE + cross(crossed_BE) * first_BE + shift_E
        logit_B: Tensor = self.out(torch.cat([crossed_BE, self.mlp(first_BE)], 1))[:, 0]
        return logit_B
