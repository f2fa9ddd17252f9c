"""AFM: a factorization machine that weights pairs by attention (Xiao et al., IJCAI 2017).

    p_ij = e_i * e_j, i < j        a = softmax_ij(h . ReLU(W p_ij + b))        logit = b + sum_i w_i + p . sum a_ij p_ij

NOTE[DIFF] In the paper, dropout is applied to the pairs p_ij. Here, as in FuxiCTR, it is applied to a and to the pooled
vector.
Shape legend: model/layers.py; P pairs.
"""

import torch
from torch import Tensor, nn

from model.layers import EmbeddingConfig, Fields, embeddings, initialize, look_up, pairs
from model.toml import Positive, Rate


class AFMConfig(EmbeddingConfig, frozen=True, kw_only=True, tag="afm"):
    """AFM's keys.

    Attributes:
        attention: The number of hidden units of the attention.
        attention_dropout: The dropout rate of the attention weights (a).
        out_dropout: The dropout rate of the pooled pairs.
    """

    attention: Positive = 128
    attention_dropout: Rate = 0.0
    out_dropout: Rate = 0.0


class AFM(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: AFMConfig) -> None:
        super().__init__()
        width, units = config.embedding, config.attention
        self.embeddings = embeddings(fields, config, [width, 1])
        score = nn.Sequential(nn.Linear(width, units), nn.ReLU(), nn.Linear(units, 1, bias=False))
        self.attention = nn.Sequential(*score, nn.Softmax(1), nn.Dropout(config.attention_dropout))
        self.out = nn.Sequential(nn.Dropout(config.out_dropout), nn.Linear(width, 1, bias=False))
        self.bias = nn.Parameter(torch.zeros(1))
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor, weight_BF1: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        first_BPD, second_BPD = pairs(x_BFD)
        product_BPD = first_BPD * second_BPD
        pooled_BD = (self.attention(product_BPD) * product_BPD).sum(1)
        pairs_B: Tensor = self.out(pooled_BD)[:, 0]
        return pairs_B + weight_BF1.sum((1, 2)) + self.bias
