"""AOANet: stacked outer products with attention over the pairs, in parallel with an MLP (Lang et al., KDD 2021).

    S_o = sum_ij alpha_ij,o B^0_i (outer) B^l_j        B^{l+1}_o = (W_o * S_o) h_o        logit = w . [MLP(e); B^L] + b

B^0 = e. Shape legend: model/layers.py; O subspaces, S rows of B^l (F rows in B^0, O rows in later layers).
"""

import torch
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, deep_width, embeddings, initialize, look_up
from model.toml import Positive


class AOANetConfig(BaselineConfig, frozen=True, kw_only=True, tag="aoanet"):
    """AOANet's keys.

    Attributes:
        interaction_layers: L.
        subspaces: O.
    """

    interaction_layers: Positive = 1
    subspaces: Positive = 2


class OuterProducts(nn.Module):
    """One layer: the projection of a weighted sum of outer products. Shape: (B, F, D), (B, S, D) -> (B, O, D)."""

    def __init__(self, fields: int, rows: int, width: int, subspaces: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(fields, rows, subspaces))
        self.weight = nn.Parameter(torch.eye(width).repeat(subspaces, 1, 1))
        self.read = nn.Parameter(torch.ones(subspaces, width))

    def forward(self, first_BFD: Tensor, last_BSD: Tensor) -> Tensor:
        # Compute sum_ij alpha_ij B0_i,c Bl_j,d as two products, so that the outer products are never materialized.
        attended_BFOD = torch.einsum("bsd,fso->bfod", last_BSD, self.alpha)
        outer_BODD = torch.einsum("bfc,bfod->bocd", first_BFD, attended_BFOD)
        return torch.einsum("bocd,ocd,od->boc", outer_BODD, self.weight, self.read)


class AOANet(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: AOANetConfig) -> None:
        super().__init__()
        width, subspaces = config.embedding, config.subspaces
        rows = [fields.count, *[subspaces] * (config.interaction_layers - 1)]
        self.embeddings = embeddings(fields, config, [width])
        self.layers = nn.ModuleList(OuterProducts(fields.count, n, width, subspaces) for n in rows)
        self.mlp = deep(fields.count * width, config, output=None)
        self.out = nn.Linear(deep_width(fields.count * width, config) + subspaces * width, 1)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        rows_BSD = x_BFD
        for layer in self.layers:
            rows_BSD = layer(x_BFD, rows_BSD)
        logit_B: Tensor = self.out(torch.cat([self.mlp(x_BFD.flatten(1)), rows_BSD.flatten(1)], 1))[:, 0]
        return logit_B
