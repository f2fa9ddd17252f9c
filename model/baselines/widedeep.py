"""Wide&Deep: logistic regression and an MLP, trained together (Cheng et al., DLRS 2016).

    logit = sum_i w_i + MLP(e)

NOTE[DIFF] The paper's wide part has hand-made crosses of fields, which no public data set has.
The only bias is the MLP's last one. Shape legend: model/layers.py.
"""

from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, embeddings, initialize, look_up


class WideDeepConfig(BaselineConfig, frozen=True, kw_only=True, tag="widedeep"):
    """Only the keys of BaselineConfig."""


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
        """Return the logits from what look_up() finds: the part that depends on both sides of a request."""
        deep_B: Tensor = self.mlp(x_BFD.flatten(1))[:, 0]
        return weight_BF1.sum((1, 2)) + deep_B
