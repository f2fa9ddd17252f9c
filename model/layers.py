"""Layers shared by several models.

Shape legend for all models: B rows, F fields (C categorical and M numeric), D embedding width.
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
    """A model's fields, with categorical fields before numeric ones.

    Attributes:
        sizes: The vocabulary size of each categorical field.
        numeric: The number of numeric fields.
        is_context: Whether each field belongs to the context. Only some models use it.
        names: The name of each field. Only some models use it.
        has_missing_vectors: Whether a missing number (NaN) has a trained vector. If False, the values must not contain
            NaN.
    """

    sizes: Sequence[int]
    numeric: int = 0
    is_context: Sequence[bool] = ()
    names: Sequence[str] = ()
    has_missing_vectors: bool = False

    @property
    def count(self) -> int:
        """The number of fields, F."""
        return len(self.sizes) + self.numeric


def fields_of(schema: FeatureSchema, sizes: Sequence[int]) -> Fields:
    """Return the fields of a schema. `sizes` are the vocabulary sizes of its categorical fields."""
    numeric = schema.select("numeric")
    fields = [*schema.select("categorical"), *numeric]
    has_missing_vectors = any(f.missing_vector for f in numeric)
    return Fields(
        sizes, len(numeric), [f.side == "context" for f in fields], [f.name for f in fields], has_missing_vectors
    )


class FeatureEmbedding(nn.Module):
    """One vector per field: a row of the embedding table (Eq. 2), or a number times the field's vector (Eq. 3).

    A single table contains the rows of all categorical fields, one field after another. With a width of 1, each value
    has a scalar weight.

    If the fields have missing vectors, a missing number (NaN) has the vector beta. Fields without a missing vector
    never contain NaN, because Numbers in contract/tokens.py replaces it with 0.

    `offset` is None in a trained model. In a copy whose vectors include the model's embedding norm
    (export/graphs/embedding.py), it is added to value * alpha, but not to beta. Shape: (M, D).

    Shape: ids int64 (B, C) and values float32 (B, M) -> (B, F, D), with the categorical fields first.
    """

    offsets: Tensor
    offset: Tensor | None

    def __init__(self, fields: Fields, width: int, std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(fields.sizes), width)
        self.alpha = nn.Parameter(torch.empty(fields.numeric, width))
        self.beta = nn.Parameter(torch.empty(fields.numeric, width)) if fields.has_missing_vectors else None
        self.register_buffer("offsets", torch.tensor([0, *fields.sizes[:-1]]).cumsum(0), persistent=False)
        self.register_buffer("offset", None, persistent=False)
        # NOTE[DIFF] The paper does not specify the initial values. In FuxiCTR, alpha's std is 10^3 times the table's.
        nn.init.normal_(self.table.weight, std=std)
        nn.init.normal_(self.alpha, std=std)
        if self.beta is not None:
            # Not 0, which is the mean's vector: AFN's logarithm has no gradient there.
            nn.init.normal_(self.beta, std=std)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        categorical_BCD = self.table(ids + self.offsets)
        return torch.cat([categorical_BCD, number_vectors(values, self.alpha, self.beta, self.offset)], 1)


def number_vectors(
    values_BM: Tensor, alpha_MD: Tensor, beta_MD: Tensor | None, offset_MD: Tensor | None = None
) -> Tensor:
    """Return the vectors of numbers: value * alpha + offset, or beta where the value is NaN. Shape: (B, M, D).

    If beta is None, NaN is not handled. If offset is None, it is 0.
    """

    def of_known(known_BM: Tensor) -> Tensor:
        scaled_BMD = known_BM[:, :, None] * alpha_MD
        return scaled_BMD if offset_MD is None else scaled_BMD + offset_MD

    if beta_MD is None:
        return of_known(values_BM)
    is_missing_BM = values_BM.isnan()
    # torch.where alone would give alpha the gradient 0 * NaN.
    known_BM = values_BM.masked_fill(is_missing_BM, 0)
    return torch.where(is_missing_BM[:, :, None], beta_MD, of_known(known_BM))


@torch.no_grad()
def use_mean_if_missing(model: nn.Module, columns: Tensor) -> None:
    """Set the missing vectors of some numeric fields to 0, which is the vector of the mean.

    Args:
        model: The model.
        columns: Whether to set each field's vector, bool (numeric).
    """
    for module in model.modules():
        if isinstance(module, FeatureEmbedding) and module.beta is not None:
            module.beta[columns] = 0


def embedding_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that embedding_l2 penalizes: entire tables, not just the rows used in a batch."""
    return [p for m in model.modules() if isinstance(m, FeatureEmbedding) for p in m.parameters()]


def mlp(width: int, hidden: Sequence[int], dropout: float, batch_norm: bool, output: int | None = 1) -> nn.Sequential:
    """Return an MLP with a linear output. Hidden layers use FuxiCTR's order: linear, batch norm, ReLU, dropout.

    Args:
        width: The number of inputs.
        hidden: The size of each hidden layer.
        dropout: The dropout rate after each hidden layer.
        batch_norm: Whether each hidden layer has a batch norm.
        output: The number of outputs, or None for no linear output.
    """
    layers: list[nn.Module] = []
    for units in hidden:
        # NOTE[DIFF] In FuxiCTR, a layer before a batch norm has a bias, which the norm subtracts again.
        layers.append(nn.Linear(width, units, bias=not batch_norm))
        layers += [nn.BatchNorm1d(units)] if batch_norm else []
        layers += [nn.ReLU(), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers, *([nn.Linear(width, output)] if output else []))


def initialize(module: nn.Module) -> None:
    """Initialize a linear layer as FuxiCTR does: Xavier weights, zero bias. To be passed to nn.Module.apply()."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TableConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """The keys that all baselines share, with BARS's values as defaults.

    Attributes:
        embedding_std: The standard deviation of the initial embeddings.
    """

    embedding_std: Annotated[float, Meta(gt=0, le=1000)] = 1e-4


class EmbeddingConfig(TableConfig, frozen=True, kw_only=True):
    """The keys of a baseline with embeddings.

    Attributes:
        embedding: D.
    """

    embedding: Positive = 10


class BaselineConfig(EmbeddingConfig, frozen=True, kw_only=True):
    """The keys of a baseline with a deep part, which is an MLP.

    Attributes:
        mlp: The sizes of the MLP's hidden layers.
        mlp_batch_norm: Whether each hidden layer has a batch norm.
        mlp_dropout: The dropout rate after each hidden layer.
    """

    mlp: tuple[Positive, ...] = (400, 400, 400)
    mlp_batch_norm: bool = True
    mlp_dropout: Rate = 0.0


def deep(width: int, config: BaselineConfig, output: int | None = 1) -> nn.Sequential:
    """Return the deep part described by a baseline's config (see mlp())."""
    return mlp(width, config.mlp, config.mlp_dropout, config.mlp_batch_norm, output)


def deep_width(width: int, config: BaselineConfig) -> int:
    """Return the output width of deep() with output=None: the last hidden layer's, or `width` without hidden layers."""
    return config.mlp[-1] if config.mlp else width


def embeddings(fields: Fields, config: TableConfig, widths: Sequence[int]) -> nn.ModuleList:
    """Return an embedding table for each width. look_up() returns their vectors in the order of the widths."""
    return nn.ModuleList(FeatureEmbedding(fields, width, config.embedding_std) for width in widths)


def look_up(tables: nn.ModuleList, ids: Tensor, values: Tensor) -> list[Tensor]:
    """Return the vectors from each table, each of shape (B, F, width of the table)."""
    return [table(ids, values) for table in tables]


def sum_of_pairs(x_BFD: Tensor) -> Tensor:
    """Return the sum of x_i * x_j over i < j without computing each pair (Rendle, 2010). Shape: (B, D)."""
    square_BD: Tensor = x_BFD.sum(1).square() - x_BFD.square().sum(1)
    return square_BD / 2


def pairs(x_BFD: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_i and x_j for all pairs i < j, ordered by i. Shape: (B, P, D) each, P = F (F - 1) / 2."""
    i_P, j_P = torch.triu_indices(x_BFD.shape[1], x_BFD.shape[1], 1, device=x_BFD.device)
    return x_BFD[:, i_P], x_BFD[:, j_P]


def check_heads(key: str, width: int, heads: int) -> None:
    """Check that a width is divisible by the number of heads.

    Raises:
        ValueError: If it is not. The message names the config's key.
    """
    if width % heads:
        divisors = [str(n) for n in range(1, min(width, 16) + 1) if width % n == 0]
        raise ValueError(
            f"{key} = {width} cannot be split into heads = {heads}. Use a number of heads that divides {width}: "
            f"{', '.join(divisors)}."
        )


def number_of_pairs(fields: Fields) -> int:
    """Return P, the number of pairs i < j."""
    return fields.count * (fields.count - 1) // 2


class SelfAttention(nn.Module):
    """Self-attention over all fields, without an output projection.

    Shape: (B, F, D) -> (B, F, A), A = width.
    """

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
