"""InterHAt: a transformer layer, then attention over interactions of increasing order (Li et al., WSDM 2020).

    X_1 = LN(FFN(Y) + Y), Y = LN(ReLU(MHA(e)) + e)        u_p = Agg_p(X_p)        X_{p+1} = u_p * X_1 + X_p
    Agg(X) = sum_i softmax_i(h . ReLU(W x_i + b)) x_i        logit = MLP(Agg([u_1; ...; u_P]))

NOTE[DIFF] FuxiCTR 1.0.2 and 2 split heads without a transpose, which mixes the fields of a row if there are two or more
heads. Its v1 branch and this code have the transpose. With one head, all versions give the same result.
NOTE[DIFF] FuxiCTR 1.0.2 and 2 have no output projection W_res of the attention if its width A equals D. Its v1 branch
always has W_res, with a bias. Here, W_res is always present, but without a bias.
NOTE[DIFF] FuxiCTR 1.0.2 and 2 also apply dropout to the attention's output. Here, as in the v1 branch, it is applied
only to the attention weights.
NOTE[DIFF] In FuxiCTR 1.0.2 and 2, `attention_dim` is the width of one head. Here, as in the v1 branch, A is the width
of all heads together.
Shape legend: model/layers.py; A attention width, H heads, P order.
"""

import torch
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, SelfAttention, check_heads, deep, embeddings, initialize, look_up
from model.toml import Positive, Rate


class InterHAtConfig(BaselineConfig, frozen=True, kw_only=True, tag="interhat"):
    """InterHAt's keys.

    Attributes:
        attention: A.
        heads: H.
        hidden: The number of hidden units of the FFN and of each aggregation (Agg).
        order: P.
        dropout: The dropout rate of the attention weights.
    """

    attention: Positive = 64
    heads: Positive = 1
    hidden: Positive = 500
    order: Positive = 3
    dropout: Rate = 0.0
    mlp: tuple[Positive, ...] = ()

    def __post_init__(self) -> None:
        check_heads("attention", self.attention, self.heads)


class Aggregation(nn.Module):
    """Agg in the formula: the sum of rows, weighted by attention. Shape: (B, rows, D) -> (B, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False), nn.Softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = (self.score(x) * x).sum(1)
        return pooled


class InterHAt(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: InterHAtConfig) -> None:
        super().__init__()
        width, hidden = config.embedding, config.hidden
        self.embeddings = embeddings(fields, config, [width])
        self.attention = SelfAttention(width, config.attention, config.heads, True, config.dropout)
        self.attention_out = nn.Linear(config.attention, width, bias=False)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.orders = nn.ModuleList(Aggregation(width, hidden) for _ in range(config.order))
        self.aggregation = Aggregation(width, hidden)
        self.mlp = deep(width, config)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        y_BFD = self.attention_norm(self.attention_out(self.attention(x_BFD)).relu() + x_BFD)
        first_BFD = self.ffn_norm(self.ffn(y_BFD) + y_BFD)
        current_BFD, found = first_BFD, list[Tensor]()
        for aggregate in self.orders:
            if found:
                current_BFD = found[-1][:, None] * first_BFD + current_BFD
            found.append(aggregate(current_BFD))
        logit_B: Tensor = self.mlp(self.aggregation(torch.stack(found, 1)))[:, 0]
        return logit_B
