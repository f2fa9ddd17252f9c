"""What two or more models share.

Shape legend, of all models: B rows, F fields, C categorical and M numeric fields of them, D embedding width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from contract.schema import FeatureSchema
from model.toml import Positive, Rate


@dataclass(frozen=True)
class Fields:
    """A model's fields: the categorical ones, behind each other, then the numeric ones.

    sizes: of the categorical fields' vocabularies. is_context, names: of all fields; only some models ask for them.
    """

    sizes: Sequence[int]
    numeric: int = 0
    is_context: Sequence[bool] = ()
    names: Sequence[str] = ()

    @property
    def count(self) -> int:
        """F."""
        return len(self.sizes) + self.numeric


def fields_of(schema: FeatureSchema, sizes: Sequence[int]) -> Fields:
    """Of a schema, whose categorical fields' vocabularies have these sizes."""
    numeric = schema.select("numeric")
    fields = [*schema.select("categorical"), *numeric]
    return Fields(sizes, len(numeric), [f.side == "context" for f in fields], [f.name for f in fields])


class FeatureEmbedding(nn.Module):
    """A vector for each field of a row: a table's row (Eq. 2), or a number times the field's vector (Eq. 3).

    One table holds all categorical fields behind each other. Shape: ids int64 (B, C) and
    values float32 (B, M) -> (B, F, D), the categorical fields first. With a width of 1: a weight for each value.
    """

    offsets: Tensor

    def __init__(self, fields: Fields, width: int, std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(fields.sizes), width)
        self.alpha = nn.Parameter(torch.empty(fields.numeric, width))
        self.register_buffer("offsets", torch.tensor([0, *fields.sizes[:-1]]).cumsum(0), persistent=False)
        # NOTE[DIFF] The paper does not say; FuxiCTR starts alpha 10^3 times wider than the table.
        nn.init.normal_(self.table.weight, std=std)
        nn.init.normal_(self.alpha, std=std)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        categorical_BCD = self.table(ids + self.offsets)
        numeric_BMD = values[:, :, None] * self.alpha
        return torch.cat([categorical_BCD, numeric_BMD], 1)


def embedding_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What the recipe's L2 falls on: whole tables, not only the rows of a batch."""
    return [p for m in model.modules() if isinstance(m, FeatureEmbedding) for p in m.parameters()]


def mlp(width: int, hidden: Sequence[int], dropout: float, batch_norm: bool, output: int | None = 1) -> nn.Sequential:
    """Hidden layers in FuxiCTR's order, Linear, batch norm, ReLU, dropout, and a linear output.

    Without hidden layers, the linear output alone; with output = None, the hidden layers alone.
    """
    layers: list[nn.Module] = []
    for units in hidden:
        # NOTE[DIFF] FuxiCTR's layer before a batch norm has a bias, which that norm takes away again.
        layers.append(nn.Linear(width, units, bias=not batch_norm))
        layers += [nn.BatchNorm1d(units)] if batch_norm else []
        layers += [nn.ReLU(), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers, *([nn.Linear(width, output)] if output else []))


def initialise(module: nn.Module) -> None:
    """Xavier for a linear layer's weights, zero for its bias: FuxiCTR's start. For nn.Module.apply()."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TableConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """What the baselines' configs have in common, with BARS's values. embedding_std: of every table's start."""

    embedding_std: Annotated[float, Meta(gt=0, le=1000)] = 1e-4


class EmbeddingConfig(TableConfig, frozen=True, kw_only=True):
    """embedding: D."""

    embedding: Positive = 10


class BaselineConfig(EmbeddingConfig, frozen=True, kw_only=True):
    """mlp: the deep part's hidden layers, in FuxiCTR's order; mlp_batch_norm, mlp_dropout: of them."""

    mlp: tuple[Positive, ...] = (400, 400, 400)
    mlp_batch_norm: bool = True
    mlp_dropout: Rate = 0.0


def deep(width: int, config: BaselineConfig, output: int | None = 1) -> nn.Sequential:
    """The deep part that a baseline's config describes; see mlp()."""
    return mlp(width, config.mlp, config.mlp_dropout, config.mlp_batch_norm, output)


def deep_width(width: int, config: BaselineConfig) -> int:
    """What deep() without an output hands on: its last hidden layer, or without any its input."""
    return config.mlp[-1] if config.mlp else width


def embeddings(fields: Fields, config: TableConfig, widths: Sequence[int]) -> nn.ModuleList:
    """A table for each of the widths; a baseline's predict() takes what is looked up there, in this order."""
    return nn.ModuleList(FeatureEmbedding(fields, width, config.embedding_std) for width in widths)


def look_up(tables: nn.ModuleList, ids: Tensor, values: Tensor) -> list[Tensor]:
    """Of each table: (B, F, its width)."""
    return [table(ids, values) for table in tables]


def sum_of_pairs(x_BFD: Tensor) -> Tensor:
    """The sum of x_i * x_j over i < j, without the pairs (Rendle, 2010). Shape: (B, D)."""
    square_BD: Tensor = x_BFD.sum(1).square() - x_BFD.square().sum(1)
    return square_BD / 2


def pairs(x_BFD: Tensor) -> tuple[Tensor, Tensor]:
    """x_i and x_j of all i < j, row by row. Shape: (B, P, D) both, P = F (F - 1) / 2."""
    i_P, j_P = torch.triu_indices(x_BFD.shape[1], x_BFD.shape[1], 1, device=x_BFD.device)
    return x_BFD[:, i_P], x_BFD[:, j_P]


def check_heads(key: str, width: int, heads: int) -> None:
    """Raises ValueError, naming the config's key, for a width that cannot be split."""
    if width % heads:
        raise ValueError(f"{key} = {width} cannot be split into heads = {heads}")


def number_of_pairs(fields: Fields) -> int:
    """P."""
    return fields.count * (fields.count - 1) // 2


class SelfAttention(nn.Module):
    """Every field attends to every field; no projection behind it. Shape: (B, F, D) -> (B, F, A), A = width."""

    def __init__(self, inputs: int, width: int, heads: int, scaled: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.divisor = math.sqrt(width // heads) if scaled else 1.0
        self.query, self.key, self.value = (nn.Linear(inputs, width, bias=False) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BFD: Tensor) -> Tensor:
        split = (m(x_BFD).unflatten(2, (self.heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        q_BHFK, k_BHFK, v_BHFK = split
        weight_BHFF = self.dropout((q_BHFK @ k_BHFK.transpose(2, 3) / self.divisor).softmax(3))
        heads_BFD: Tensor = (weight_BHFF @ v_BHFK).transpose(1, 2).flatten(2)
        return heads_BFD
