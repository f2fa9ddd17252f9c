"""AutoInt+: stacked self-attention over fields, in parallel with an MLP (Song et al., CIKM 2019).

    X^{l+1} = ReLU(LN(MHA(X^l) + R X^l))        logit = w . X^L + b + MLP(e) (+ sum_i w_i)

R is a matrix if the widths differ, and the identity otherwise.
NOTE[DIFF] In the paper, R is always a matrix, there is no layer norm LN, and the scores are not scaled. This code
follows BARS.
Shape legend: model/layers.py; A attention width.
"""

from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, SelfAttention, check_heads, deep, embeddings, initialize, look_up
from model.toml import Positive, Rate


class AutoIntConfig(BaselineConfig, frozen=True, kw_only=True, tag="autoint"):
    """AutoInt's keys.

    Attributes:
        attention: A, summed over all heads.
        layers: L.
        heads: The number of attention heads.
        layer_norm: Whether each layer has a layer norm (LN).
        scaled: Whether attention scores are divided by the square root of the head width.
        wide: Whether to add the sum of the weights w_i to the logit.
        dropout: The dropout rate of the attention weights.
    """

    attention: Positive = 128
    layers: Positive = 5
    heads: Positive = 4
    layer_norm: bool = True
    scaled: bool = True
    wide: bool = False
    dropout: Rate = 0.0

    def __post_init__(self) -> None:
        check_heads("attention", self.attention, self.heads)


class Layer(nn.Module):
    """Shape: (B, F, width) -> (B, F, A)."""

    def __init__(self, width: int, config: AutoIntConfig) -> None:
        super().__init__()
        out = config.attention
        self.attention = SelfAttention(width, out, config.heads, config.scaled, config.dropout)
        self.residual = nn.Identity() if width == out else nn.Linear(width, out, bias=False)
        self.norm = nn.LayerNorm(out) if config.layer_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.attention(x) + self.residual(x)).relu()
        return out


class AutoInt(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: AutoIntConfig) -> None:
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
