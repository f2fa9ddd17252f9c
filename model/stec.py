"""STEC: See-Through Transformer-based Encoder for CTR prediction (arXiv 2308.15033v2), in the paper's order.

An attention score is the sum of q * k over a head's width. Before that sum, the same product is a
bilinear interaction of two fields: STEC reads every block's interactions directly, at no extra cost.

Shape legend: B rows, F fields, D embedding width, H heads, K = D / H, N blocks.
A level is one interaction, (B, F, F, D): N of the blocks and one standalone, N + 1 in all.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.schema import FeatureSchema
from model import experiment
from model.factorised import level_logit


class FeatureEmbedding(nn.Module):
    """A vector for each field of a row: a table's row (Eq. 2), or a number times the field's vector (Eq. 3).

    One table holds all categorical fields behind each other. Shape: ids int64 (B, categorical) and
    values float32 (B, numeric) -> (B, F, D), the categorical fields first.
    """

    offsets: Tensor

    def __init__(self, sizes: Sequence[int], numeric: int, width: int, std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(sizes), width)
        self.alpha = nn.Parameter(torch.empty(numeric, width))
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        # NOTE[DIFF] The paper does not say; FuxiCTR starts alpha 10^3 times wider than the table.
        nn.init.normal_(self.table.weight, std=std)
        nn.init.normal_(self.alpha, std=std)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        categorical_BCD = self.table(ids + self.offsets)
        numeric_BMD = values[:, :, None] * self.alpha
        return torch.cat([categorical_BCD, numeric_BMD], 1)


class Projections(nn.Module):
    """q and k of one level (Eq. 4). The paper's projections have no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)

    def forward(self, x_BFD: Tensor) -> tuple[Tensor, Tensor]:
        return self.query(x_BFD), self.key(x_BFD)


class Block(nn.Module):
    """One encoder layer with post-norm (Fig. 1) that also hands out its q and k.

    Shape: (B, F, D) -> (B, F, D), q (B, F, D), k (B, F, D).
    """

    def __init__(self, size: experiment.Model) -> None:
        super().__init__()
        width = size.embedding
        self.heads = size.heads
        self.project = Projections(width)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.attention_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, size.ffn), nn.ReLU(), nn.Linear(size.ffn, width))
        self.ffn_norm = nn.LayerNorm(width)
        # NOTE[DIFF] The paper has no dropout in the encoder; 0, the default, is the paper's.
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x_BFD: Tensor, plain: bool, allowed_FF: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q_BFD, k_BFD = self.project(x_BFD)
        attend = attend_to_interactions if plain else attend_fused
        heads_BFD = attend(q_BFD, k_BFD, self.value(x_BFD), self.heads, allowed_FF)
        x_BFD = self.attention_norm(x_BFD + self.dropout(self.out(heads_BFD)))
        x_BFD = self.ffn_norm(x_BFD + self.dropout(self.ffn(x_BFD)))  # Eq. 10
        return x_BFD, q_BFD, k_BFD


def interaction(q_BFD: Tensor, k_BFD: Tensor) -> Tensor:
    """Every field's q times every field's k, before any pooling (Eq. 7-9). Shape: (B, F, F, D).

    Splitting into heads and concatenating them again changes no element of it.
    """
    return q_BFD[:, :, None, :] * k_BFD[:, None, :, :]


def attend_to_interactions(
    q_BFD: Tensor, k_BFD: Tensor, v_BFD: Tensor, heads: int, allowed_FF: Tensor | None = None
) -> Tensor:
    """Eq. 5 and 6 as Figure 2 draws them: pool the interaction within each head, softmax, weigh v.

    allowed_FF: true where a field (row) may attend to another (column); None is everywhere.
    """
    rows, fields, width = q_BFD.shape
    v_BFHK = v_BFD.view(rows, fields, heads, -1)
    weight_BFFH = attention_weights(q_BFD, k_BFD, heads, allowed_FF)
    return torch.einsum("bijh,bjhk->bihk", weight_BFFH, v_BFHK).reshape(rows, fields, width)


def attention_weights(q_BFD: Tensor, k_BFD: Tensor, heads: int, allowed_FF: Tensor | None = None) -> Tensor:
    """Eq. 5: how much each field attends to each other. Shape: (B, F, F, H), summing to 1 over the second F."""
    rows, fields, width = q_BFD.shape
    p_BFFHK = interaction(q_BFD, k_BFD).view(rows, fields, fields, heads, -1)
    score_BFFH = p_BFFHK.sum(-1) / math.sqrt(width // heads)
    if allowed_FF is not None:
        score_BFFH = score_BFFH.masked_fill(~allowed_FF[:, :, None], -math.inf)
    return score_BFFH.softmax(2)


def attend_fused(q_BFD: Tensor, k_BFD: Tensor, v_BFD: Tensor, heads: int, allowed_FF: Tensor | None = None) -> Tensor:
    """The same attention without the interaction in memory."""
    rows, fields, width = q_BFD.shape
    q, k, v = (t.view(rows, fields, heads, -1).transpose(1, 2) for t in (q_BFD, k_BFD, v_BFD))
    heads_BHFK = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed_FF)
    return heads_BHFK.transpose(1, 2).reshape(rows, fields, width)


def who_attends(is_context: Sequence[bool]) -> Tensor:
    """What attention = "request" allows: a context field attends to context fields, a candidate's to all.

    NOTE[DIFF] The paper lets every field attend to every field. Shape: F -> bool (F, F), row attends to column.
    """
    context_F = torch.tensor(is_context)
    return ~context_F[:, None] | context_F


class STEC(nn.Module):
    """Ids and values -> logits.

    plain: compute the interactions as the paper writes them. The other form, the default, gives the
    same logits, gradients and running statistics from the same state dict without ever holding a
    (B, F, F, D) tensor; it exists for the linear head only, so an MLP head is always plain.
    is_context: for each field whether it is the context's; only attention = "request" asks.
    """

    allowed_FF: Tensor | None

    def __init__(
        self,
        sizes: Sequence[int],
        numeric: int,
        size: experiment.Model,
        plain: bool = False,
        is_context: Sequence[bool] = (),
    ) -> None:
        super().__init__()
        self.plain = plain or bool(size.mlp)
        self.fields = len(sizes) + numeric
        assert size.attention == "full" or len(is_context) == self.fields
        allowed_FF = who_attends(is_context) if size.attention == "request" else None
        self.register_buffer("allowed_FF", allowed_FF, persistent=False)
        level_width = self.fields**2 * size.embedding
        self.embedding = FeatureEmbedding(sizes, numeric, size.embedding, size.embedding_std)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.blocks))
        self.last = Projections(size.embedding)
        self.norms = nn.ModuleList(nn.BatchNorm1d(level_width) for _ in range(size.blocks + 1))
        self.head = mlp((size.blocks + 1) * level_width, size.mlp, size.dropout)
        self.apply(_initialise)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        """Shape: ids int64 (B, categorical), values (B, numeric) -> logits (B). Eq. 12 is their BCE."""
        levels = self.levels(self.embedding(ids, values))
        return self.predict_plain(levels) if self.plain else self.predict_factorised(levels)

    def levels(self, x_BFD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """q and k of every level: the blocks', then the standalone interaction's on the encoder's output."""
        levels = []
        for block in self.blocks:
            x_BFD, q_BFD, k_BFD = block(x_BFD, self.plain, self.allowed_FF)
            levels.append((q_BFD, k_BFD))
        return [*levels, self.last(x_BFD)]

    def predict_plain(self, levels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Normalise each level over the batch, concatenate (Eq. 11), predict."""
        normalised = [norm(interaction(q, k).flatten(1)) for norm, (q, k) in zip(self.norms, levels, strict=True)]
        logit_B: Tensor = self.head(torch.cat(normalised, 1))[:, 0]
        return logit_B

    def predict_factorised(self, levels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The same with the linear head's weights pulled into the product: see model/factorised.py."""
        linear: nn.Linear = self.head[0]  # type: ignore[assignment]
        weights = linear.weight[0].chunk(len(levels))
        logits = [level_logit(q, k, n, w) for (q, k), n, w in zip(levels, self.norms, weights, strict=True)]  # type: ignore[arg-type]
        return torch.stack(logits).sum(0) + linear.bias

    def embedding_parameters(self) -> list[nn.Parameter]:
        """What the recipe's L2 falls on: whole tables, not only the rows of a batch."""
        return list(self.embedding.parameters())


def stec_for(schema: FeatureSchema, sizes: Sequence[int], size: experiment.Model) -> STEC:
    """A new model of a schema's fields: the categorical ones, whose vocabularies' sizes are given, then the numeric."""
    numeric = schema.select("numeric")
    is_context = [field.side == "context" for field in (*schema.select("categorical"), *numeric)]
    return STEC(sizes, len(numeric), size, is_context=is_context)


def mlp(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Layers of ReLU and one linear output; without hidden layers, the linear output alone."""
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 1))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
