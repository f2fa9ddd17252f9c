"""FinalMLP: two MLPs, each with its own feature selection, and a bilinear fusion (Mao et al., AAAI 2023).

    f_s = e * 2 sigmoid(gate_s(c_s)), s = 1, 2        o_s = MLP_s(f_s)
    logit = w_1 . o_1 + w_2 . o_2 + sum_h o_1h^T W_h o_2h + b

c_s are the embeddings of some fields, from a second table. Without fields, gate_s is a learned vector. o_h is one
head's part of o.
NOTE[DIFF] FuxiCTR has one table per gate, which contains only that gate's fields. Here, both gates share one table of
all fields.
NOTE[DIFF] In FuxiCTR, a gate without fields is an MLP applied to a learned vector. All its parameters start at zero and
stay there, except for the last layer's biases. Here, these biases are the vector.
NOTE[DIFF] FuxiCTR's fusion has a bias for each w_s. Here, there is a single bias. It can express the same function, but
it trains differently (README.md).
Shape legend: model/layers.py; H heads.
"""

import torch
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, embeddings, initialize, look_up, mlp
from model.toml import Positive, Rate


class FinalMLPConfig(BaselineConfig, frozen=True, kw_only=True, tag="finalmlp"):
    """FinalMLP's keys.

    Attributes:
        mlp: The sizes of the first stream's hidden layers.
        mlp_batch_norm: Whether each hidden layer of the first stream has a batch norm.
        mlp_dropout: The dropout rate after each hidden layer of the first stream.
        mlp2: The sizes of the second stream's hidden layers.
        mlp2_batch_norm: Whether each hidden layer of the second stream has a batch norm.
        mlp2_dropout: The dropout rate after each hidden layer of the second stream.
        gate: The sizes of the hidden layers of a gate's MLP. A gate without fields has no MLP.
        context1: The names of the fields that the first gate uses. If empty, the gate is a learned vector.
        context2: The names of the fields that the second gate uses. If empty, the gate is a learned vector.
        heads: The number of heads of the bilinear fusion (H).
    """

    mlp: tuple[Positive, ...] = (400,)
    mlp2: tuple[Positive, ...] = (400,)
    mlp2_batch_norm: bool = True
    mlp2_dropout: Rate = 0.0
    gate: tuple[Positive, ...] = (400,)
    context1: tuple[str, ...] = ()
    context2: tuple[str, ...] = ()
    heads: Positive = 5

    def __post_init__(self) -> None:
        if not self.mlp or not self.mlp2 or self.mlp[-1] % self.heads or self.mlp2[-1] % self.heads:
            ends = f"mlp = {list(self.mlp)} and mlp2 = {list(self.mlp2)}"
            raise ValueError(f"{ends}: both need a last layer whose size is divisible by heads = {self.heads}")


class Gate(nn.Module):
    """A stream's feature selection, which gives each embedding dimension a factor from 0 to 2.

    Shape: (B, F, D) -> (B or 1, F * D).

    Raises:
        ValueError: If a name in `context` is not a field.
    """

    columns: Tensor

    def __init__(self, fields: Fields, context: tuple[str, ...], config: FinalMLPConfig) -> None:
        super().__init__()
        if unknown := [name for name in context if name not in fields.names]:
            raise ValueError(
                f"model.context1 or context2 contains {unknown[0]!r}, which is not a field. Choose from "
                f"{', '.join(fields.names)}."
            )
        width, out = config.embedding, fields.count * config.embedding
        columns = torch.tensor([list(fields.names).index(name) for name in context], dtype=torch.int64)
        self.register_buffer("columns", columns, persistent=False)
        self.vector = None if context else nn.Parameter(torch.zeros(1, out))
        self.net = mlp(len(context) * width, config.gate, 0.0, False, out) if context else None

    def forward(self, context_BFD: Tensor) -> Tensor:
        if self.net is None:
            assert self.vector is not None
            return 2 * self.vector.sigmoid()
        factor: Tensor = 2 * self.net(context_BFD.index_select(1, self.columns).flatten(1)).sigmoid()
        return factor


class FinalMLP(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: FinalMLPConfig) -> None:
        super().__init__()
        width, (first, second) = fields.count * config.embedding, (config.mlp[-1], config.mlp2[-1])
        has_context = bool(config.context1 or config.context2)
        self.embeddings = embeddings(fields, config, [config.embedding] * (1 + has_context))
        self.gates = nn.ModuleList(Gate(fields, names, config) for names in (config.context1, config.context2))
        self.mlp = mlp(width, config.mlp, config.mlp_dropout, config.mlp_batch_norm, None)
        self.mlp2 = mlp(width, config.mlp2, config.mlp2_dropout, config.mlp2_batch_norm, None)
        self.out = nn.Linear(first, 1)
        self.out2 = nn.Linear(second, 1, bias=False)
        self.fusion = nn.Parameter(torch.empty(config.heads, first // config.heads, second // config.heads))
        self.apply(initialize)
        nn.init.xavier_normal_(self.fusion.view(-1, 1))  # FuxiCTR initializes it as one matrix with one column

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor, context_BFD: Tensor | None = None) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        gates = [gate(x_BFD if context_BFD is None else context_BFD) for gate in self.gates]
        first, second = (net(x_BFD.flatten(1) * g) for net, g in zip((self.mlp, self.mlp2), gates, strict=True))
        logit_B: Tensor = (self.out(first) + self.out2(second))[:, 0]
        return logit_B + self.fuse(first, second)

    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the sum of the heads' bilinear products. Shape: (B, units of mlp), (B, units of mlp2) -> (B)."""
        heads = len(self.fusion)
        left_BHX, right_BHY = first.unflatten(1, (heads, -1)), second.unflatten(1, (heads, -1))
        projected_HBY = left_BHX.transpose(0, 1) @ self.fusion
        fused_B: Tensor = (projected_HBY.transpose(0, 1) * right_BHY).sum((1, 2))
        return fused_B
