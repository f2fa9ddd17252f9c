"""DESTINE: self-attention with a pairwise and a unary part, in parallel with an MLP (Xu et al., CIKM 2021).

    A_ij = softmax_j((q_i - mean q) . (k_j - mean k) / sqrt(d)) + softmax_j(u . x_j)
    X^{l+1} = A V + R X^l        logit = w . X^L + b + MLP(e) (+ sum_i w_i)

NOTE[DIFF] The unary part uses the field itself, as BARS's parameter counts imply. In the paper, it uses the field's
key.
NOTE[DIFF] The authors' code has a ReLU before w. FuxiCTR and BARS have no ReLU there, nor between layers.
NOTE[DIFF] FuxiCTR splits two or more heads without a transpose, which mixes the fields of a row. This code does not
mix them. With one head, both versions give the same result.
NOTE[DIFF] In FuxiCTR, q, k and u have biases, which the means and the softmax cancel. v and R also have a bias each.
Here, only R has a bias. A row of A sums to 2 (except with dropout, during training), so one bias can express the same
function, but it trains differently (README.md).
Shape legend: model/layers.py; A attention width, H heads, K = A / H.
"""

import math

from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, check_heads, deep, embeddings, initialize, look_up
from model.toml import Positive, Rate


class DESTINEConfig(BaselineConfig, frozen=True, kw_only=True, tag="destine"):
    """DESTINE's keys.

    Attributes:
        attention: A, summed over all heads.
        layers: L.
        heads: H.
        scaled: Whether attention scores are divided by the square root of the head width, sqrt(d).
        wide: Whether to add the sum of the weights w_i to the logit.
        dropout: The dropout rate of the attention weights.
    """

    attention: Positive = 128
    layers: Positive = 4
    heads: Positive = 1
    scaled: bool = True
    wide: bool = False
    dropout: Rate = 0.0

    def __post_init__(self) -> None:
        check_heads("attention", self.attention, self.heads)


class Layer(nn.Module):
    """Shape: (B, F, width) -> (B, F, A)."""

    def __init__(self, width: int, config: DESTINEConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.divisor = math.sqrt(config.attention // config.heads) if config.scaled else 1.0
        self.query, self.key, self.value = (nn.Linear(width, config.attention, bias=False) for _ in range(3))
        self.unary = nn.Linear(width, config.heads, bias=False)
        self.residual = nn.Linear(width, config.attention)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        pair_BHFF = (center(q) @ center(k).transpose(2, 3) / self.divisor).softmax(3)
        unary_BH1F = self.unary(x).softmax(1).transpose(1, 2)[:, :, None, :]
        heads_BHFK = self.dropout(pair_BHFF + unary_BH1F) @ v
        out: Tensor = heads_BHFK.transpose(1, 2).flatten(2) + self.residual(x)
        return out


class DESTINE(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: DESTINEConfig) -> None:
        super().__init__()
        width, out = config.embedding, config.attention
        widths = [width, *[out] * (config.layers - 1)]
        self.embeddings = embeddings(fields, config, [width, 1] if config.wide else [width])
        self.layers = nn.Sequential(*(Layer(inputs, config) for inputs in widths))
        self.out = nn.Linear(fields.count * out, 1)
        self.mlp = deep(fields.count * width, config)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor, weight_BF1: Tensor | None = None) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        logit_B: Tensor = (self.out(self.layers(x_BFD).flatten(1)) + self.mlp(x_BFD.flatten(1)))[:, 0]
        return logit_B if weight_BF1 is None else logit_B + weight_BF1.sum((1, 2))


def center(t_BHFK: Tensor) -> Tensor:
    """Subtract the mean over the fields, which the paper calls whitening."""
    return t_BHFK - t_BHFK.mean(2, keepdim=True)
