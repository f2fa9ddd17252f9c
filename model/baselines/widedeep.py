"""Wide&Deep: logistic regression and an MLP, trained together (Cheng et al., DLRS 2016).

    logit = sum_i w_i + MLP(e)

NOTE[DIFF] The paper's wide part uses handcrafted crosses of fields, which no public data set includes.
The only bias is that of the MLP's last layer. Shape legend: model/layers.py.
"""

from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, embeddings, initialize, look_up


class WideDeepConfig(BaselineConfig, frozen=True, kw_only=True, tag="widedeep"):
    """Wide&Deep's keys, all of which are inherited from BaselineConfig."""


class WideDeep(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: WideDeepConfig) -> None:
        super().__init__()
        self.embeddings = embeddings(fields, config, [config.embedding, 1])
        self.mlp = deep(fields.count * config.embedding, config)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor, weight_BF1: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        deep_B: Tensor = self.mlp(x_BFD.flatten(1))[:, 0]
        return weight_BF1.sum((1, 2)) + deep_B
