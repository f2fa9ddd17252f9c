"""AFN+: cross features of learned, real-valued orders, in parallel with an MLP (Cheng et al., AAAI 2020).

    z_k = exp(sum_i a_ki BN(ln max(|e_i|, 1e-5)))        logit = w . [MLP1(BN(z)); MLP2(e')] + b

z_k is a product of powers of the fields. e' comes from a second embedding table. Both MLPs have one output.
NOTE[DIFF] In FuxiCTR, the gradient of the loss vanishes for large logits, which this model can have (README.md).
Shape legend: model/layers.py; K logarithmic neurons.
"""

import torch
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, embeddings, initialize, look_up, mlp
from model.toml import Positive, Rate

MIN_ABSOLUTE = 1e-5  # the logarithm of 0 is undefined


class AFNConfig(BaselineConfig, frozen=True, kw_only=True, tag="afn"):
    """AFN's keys.

    Attributes:
        mlp: The sizes of the hidden layers of MLP2, which reads the second embedding table.
        mlp_batch_norm: Whether each hidden layer of MLP1 and MLP2 has a batch norm.
        mlp_dropout: The dropout rate after each hidden layer of MLP2.
        neurons: K.
        afn: The sizes of the hidden layers of MLP1, which reads the logarithmic neurons.
        afn_dropout: The dropout rate after each hidden layer of MLP1.
    """

    neurons: Positive = 1000
    afn: tuple[Positive, ...] = (400,)
    afn_dropout: Rate = 0.0
    mlp_batch_norm: bool = False


class AFN(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: AFNConfig) -> None:
        super().__init__()
        width = config.embedding
        self.embeddings = embeddings(fields, config, [width, width])
        self.log_norm = nn.BatchNorm1d(fields.count)
        self.orders = nn.Linear(fields.count, config.neurons, bias=False)
        self.cross_norm = nn.BatchNorm1d(config.neurons)
        if config.mlp_batch_norm:  # MLP1's first batch norm would subtract this shift
            self.cross_norm.register_parameter("bias", None)
        self.cross_mlp = mlp(config.neurons * width, config.afn, config.afn_dropout, config.mlp_batch_norm)
        self.mlp = deep(fields.count * width, config)
        self.out = nn.Linear(2, 1)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor, deep_BFD: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        logarithm_BFD = self.log_norm(x_BFD.abs().clamp_min(MIN_ABSOLUTE).log())
        orders_BDK = self.orders(logarithm_BFD.transpose(1, 2)).exp()
        # The batch norm is applied to rows of length K. On (B, K, D), its gradient in torch would take most of the time
        # of a training step.
        cross_BDK = self.cross_norm(orders_BDK.flatten(0, 1)).view_as(orders_BDK)
        both_B2 = torch.cat([self.cross_mlp(cross_BDK.flatten(1)), self.mlp(deep_BFD.flatten(1))], 1)
        logit_B: Tensor = self.out(both_B2)[:, 0]
        return logit_B
