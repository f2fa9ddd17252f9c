"""MaskNet: layers whose inputs are multiplied by a mask that an MLP computes from the row (Wang et al., DLP-KDD 2021).

    block(h) = dropout(ReLU(LN(W (mask(e) * h))))        mask(e) = W2 ReLU(W1 e + b1) + b2
    parallel: logit = MLP([block_1(e); ...; block_K(e)])        serial: logit = w . block_K(...block_1(e)) + b

Shape legend: model/layers.py; E = F * D.
"""

from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from model.layers import BaselineConfig, Fields, deep, embeddings, initialize, look_up
from model.toml import Positive


class MaskNetConfig(BaselineConfig, frozen=True, kw_only=True, tag="masknet"):
    """MaskNet's keys.

    Attributes:
        mlp: The sizes of the MLP's hidden layers or, with structure = "serial", of the blocks.
        mlp_dropout: The dropout rate of the blocks and of the MLP.
        structure: Either "parallel", which has `blocks` blocks of `block_width` units each, followed by the MLP, or
            "serial", which has one block for each size in `mlp`. With "serial", `blocks`, `block_width` and
            `mlp_batch_norm` have no effect.
        blocks: K.
        block_width: The number of units of each parallel block.
        reduction: The number of hidden units of a mask, divided by the number of inputs of its block.
        embedding_norm: Whether each field's embedding has a layer norm before the first block.
    """

    structure: Literal["parallel", "serial"] = "parallel"
    blocks: Positive = 3
    block_width: Positive = 50
    reduction: Annotated[float, Meta(ge=0.001, le=1000)] = 2.0
    embedding_norm: bool = False
    mlp_batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.structure == "serial" and not self.mlp:
            raise ValueError('structure = "serial" takes the sizes of its blocks from mlp, but mlp is empty')


class MaskBlock(nn.Module):
    """Shape: e (B, E), h (B, inputs) -> (B, outputs)."""

    def __init__(self, width: int, inputs: int, outputs: int, config: MaskNetConfig) -> None:
        super().__init__()
        hidden = max(1, int(inputs * config.reduction))
        self.mask = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, inputs))
        self.hidden = nn.Sequential(
            nn.Linear(inputs, outputs, bias=False), nn.LayerNorm(outputs), nn.ReLU(), nn.Dropout(config.mlp_dropout)
        )

    def forward(self, x_BE: Tensor, h: Tensor) -> Tensor:
        out: Tensor = self.hidden(self.mask(x_BE) * h)
        return out


class MaskNet(nn.Module):
    """Shape: ids int64 (B, C), values (B, M) -> logits (B)."""

    def __init__(self, fields: Fields, config: MaskNetConfig) -> None:
        super().__init__()
        width = fields.count * config.embedding
        self.embeddings = embeddings(fields, config, [config.embedding])
        norms = (nn.LayerNorm(config.embedding) for _ in range(fields.count)) if config.embedding_norm else ()
        self.norms = nn.ModuleList(norms)
        self.is_parallel = config.structure == "parallel"
        if self.is_parallel:
            sizes = [(width, config.block_width)] * config.blocks
            self.out = deep(config.blocks * config.block_width, config)
        else:
            sizes = list(zip([width, *config.mlp[:-1]], config.mlp, strict=True))
            self.out = nn.Sequential(nn.Linear(config.mlp[-1], 1))
        self.blocks = nn.ModuleList(MaskBlock(width, inputs, outputs, config) for inputs, outputs in sizes)
        self.apply(initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.predict(*look_up(self.embeddings, ids, values))

    def predict(self, x_BFD: Tensor) -> Tensor:
        """Compute the logits from the output of look_up(). Unlike the lookup, this needs context and candidate."""
        x_BE = h = x_BFD.flatten(1)
        if len(self.norms):
            h = torch.cat([norm(x_BFD[:, i]) for i, norm in enumerate(self.norms)], 1)
        if self.is_parallel:
            h = torch.cat([block(x_BE, h) for block in self.blocks], 1)
        else:
            for block in self.blocks:
                h = block(x_BE, h)
        logit_B: Tensor = self.out(h)[:, 0]
        return logit_B
