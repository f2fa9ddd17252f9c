"""DeepFM: a factorization machine and an MLP on the same embeddings (Guo et al., IJCAI 2017).

    logit = sum_i w_i + sum_{i<j} <e_i, e_j> + MLP(e)

The only bias is that of the MLP's last layer. Shape legend: model/layers.py.
"""

from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, embeddings, initialize, look_up, sum_of_pairs


class DeepFMConfig(BaselineConfig, frozen=True, kw_only=True, tag="deepfm"):
    """DeepFM's keys, all of which are inherited from BaselineConfig."""


class DeepFM(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: DeepFMConfig) -> None:
        super().__init__()
        self.embeddings = embeddings(fields, config, [config.embedding, 1])
        self.mlp = deep(fields.count * config.embedding, config)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor, weight_BF1: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        deep_B: Tensor = self.mlp(x_BFD.flatten(1))[:, 0]
        return sum_of_pairs(x_BFD).sum(1) + weight_BF1.sum((1, 2)) + deep_B
