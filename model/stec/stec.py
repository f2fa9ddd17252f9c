"""STEC: See-Through Transformer-based Encoder for CTR prediction (arXiv 2308.15033v2).

The definitions in this module are in the order of the paper.

An attention score is the sum of q * k over a head's width. Before it is summed, this product is a bilinear interaction
of two fields. STEC uses the interactions of every block directly, at no extra cost.

Shape legend: B rows, F fields, D embedding width, H heads, K = D / H, N blocks, P pairs of fields.
A level is one interaction, (B, F, F, D). There are N + 1 levels: one per block and a standalone one. Each is the
product of a left and a right factor, (B, F, D) each. The factors are q and k, unless the experiment sets another
interaction (docs/decisions/0008).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from contract.schema import Attention, FeatureSchema
from model.layers import FeatureEmbedding, Fields, check_heads, fields_of, initialize, mlp
from model.stec.attention import attend_fused, attend_to_interactions, interaction, pairs_in_head, request_mask
from model.stec.factorized import level_logit
from model.stec.norms import NORM_EPS, BatchNorm, EmbeddingNorm
from model.toml import Positive, Rate

# With less than both, a batch norm would amplify the rounding errors of interactions that are constant.
MIN_LEVEL_EPS, MIN_LEVEL_EPS_RELATIVE = 1e-30, 1e-12


class STECConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="stec"):
    """STEC's size and options, including what the paper leaves open (docs/decisions/0008-model-options.md).

    Attributes:
        embedding: D.
        blocks: N.
        heads: H.
        ffn: The number of hidden units of the FFN. 0 removes the FFN and its norm.
        mlp: The sizes of the head's hidden layers. Without hidden layers, the head is a single linear layer, which is
            fast to train and to serve.
        mlp_batch_norm: Whether each hidden layer of the head has a batch norm.
        mlp_dropout: The dropout rate after each hidden layer of the head.
        attention: The fields that a context field attends to: all fields, as in the paper ("full"), or only context
            fields ("request"). With "request", the server computes the entire context once per request. Candidate
            fields always attend to all fields.
        pairs: The pairs of fields (i, j) that the head uses: all ordered pairs ("full"), those with i < j ("upper"), or
            those with i <= j ("upper_diag").
        scale: The divisor of the attention scores. A score is the sum of the interaction over the head width K, divided
            by sqrt(K) ("sqrt") or by K ("mean").
        interaction: The interaction of fields i and j: q_i * k_j ("qk"); x_i * W x_j with one matrix W per head
            ("xwx"); or x_i * W x_j in a separate layer, in parallel with attention that has its own q and k
            ("separate").
        fusion: The input of the head: all levels concatenated ("concat"), their sum ("add"), or a single level
            ("last").
        last: The level that fusion = "last" uses: the standalone interaction ("layer") or that of the last block
            ("block").
        dropout: The dropout rate in the encoder.
        embedding_std: The standard deviation of the initial embeddings.
        embedding_norm: The norm of the embeddings before the first block, without trained parameters: none, a batch
            norm of each number of each field's vector ("batch"; the numbers of a numeric field's vector share one
            scale), or one scale for each field ("rms"). Exported models contain it in their embedding tables.
        layer_norm_eps: The number added to the variance in the encoder's layer norms. A number above the variance of
            the embeddings, such as 5, keeps their differences in length.
        level_eps: The number added to the variance in the levels' batch norms. The variance of the first level is about
            the fourth power of the embeddings' standard deviation, so a level whose variance is far below level_eps
            contributes nothing. Less than 1e-30 needs a level_eps_relative of at least 1e-12.
        level_eps_relative: Added to level_eps, multiplied by the level's mean variance over its interactions. It does
            not depend on the size of the embeddings, and limits how much an almost constant interaction is amplified.
    """

    embedding: Positive = 16
    blocks: Positive = 2
    heads: Positive = 2
    ffn: Annotated[int, Meta(ge=0)] = 64
    mlp: tuple[Positive, ...] = ()
    mlp_batch_norm: bool = False
    mlp_dropout: Rate = 0.0
    attention: Attention = "full"
    pairs: Literal["full", "upper", "upper_diag"] = "full"
    scale: Literal["sqrt", "mean"] = "sqrt"
    interaction: Literal["qk", "xwx", "separate"] = "qk"
    fusion: Literal["concat", "add", "last"] = "concat"
    last: Literal["layer", "block"] = "layer"
    dropout: Rate = 0.0
    embedding_std: Annotated[float, Meta(gt=0, le=1000)] = 0.01
    embedding_norm: Literal["none", "batch", "rms"] = "none"
    layer_norm_eps: Annotated[float, Meta(gt=0, le=1000)] = NORM_EPS
    level_eps: Annotated[float, Meta(ge=0, le=1000)] = NORM_EPS
    level_eps_relative: Annotated[float, Meta(ge=0, le=1000)] = 0.0

    def __post_init__(self) -> None:
        check_heads("embedding", self.embedding, self.heads)
        if self.level_eps < MIN_LEVEL_EPS and self.level_eps_relative < MIN_LEVEL_EPS_RELATIVE:
            raise ValueError(
                f"level_eps = {self.level_eps:g} with level_eps_relative = {self.level_eps_relative:g} divides by the "
                "variance of interactions that may be constant, up to rounding errors. Set level_eps_relative = 0.01 "
                f"or another number of at least {MIN_LEVEL_EPS_RELATIVE:g}, or level_eps of at least {MIN_LEVEL_EPS:g}."
            )
        self._check_head()
        self._check_last()

    def _check_head(self) -> None:
        for key, value, unset in (("mlp_batch_norm", "true", False), ("mlp_dropout", self.mlp_dropout, 0.0)):
            if getattr(self, key) != unset and not self.mlp:
                raise ValueError(f"{key} = {value} needs hidden layers. Set mlp or remove {key}.")

    def _check_last(self) -> None:
        if self.last == "block" and self.fusion != "last":
            raise ValueError(f'last = "block" has no effect with fusion = "{self.fusion}". Set fusion = "last".')
        if self.last == "block" and self.blocks == 1:
            raise ValueError('last = "block" with blocks = 1 leaves no attention. Set blocks = 2 or last = "layer".')
        if self.interaction == "separate" and self.fusion == "last" and self.last == "layer":
            raise ValueError(
                'interaction = "separate" with fusion = "last" and last = "layer" does not use the interaction of any '
                'block. Set interaction = "qk", which is the same model, or last = "block".'
            )


class Projections(nn.Module):
    """q and k of one level (Eq. 4). As in the paper, the projections have no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)

    def forward(self, x_BFD: Tensor) -> tuple[Tensor, Tensor]:
        return self.query(x_BFD), self.key(x_BFD)


class Bilinear(nn.Module):
    """x and W x, with one W per head: Eq. 7 "reduced to a single learnable parameter". weight: (H, K out, K in)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, width // heads, width // heads))

    def forward(self, x_BFD: Tensor) -> tuple[Tensor, Tensor]:
        x_BFHK = x_BFD.unflatten(2, (len(self.weight), -1))
        return x_BFD, torch.einsum("bfhk,hlk->bfhl", x_BFHK, self.weight).flatten(2)


def factors(size: STECConfig, kind: str) -> Projections | Bilinear:
    """Return the module that computes the two factors of an interaction of this kind, "qk" or "xwx"."""
    return Projections(size.embedding) if kind == "qk" else Bilinear(size.embedding, size.heads)


class Block(nn.Module):
    """An encoder layer with post-norm (Fig. 1) that also returns the factors of its interaction.

    Shape: (B, F, D) -> (B, F, D), left (B, F, D), right (B, F, D).
    """

    def __init__(self, size: STECConfig) -> None:
        super().__init__()
        width = size.embedding
        self.heads = size.heads
        self.score_divisor = score_divisor(size)
        self.project = factors(size, "xwx" if size.interaction == "xwx" else "qk")
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.attention_norm = nn.LayerNorm(width, size.layer_norm_eps)
        self.has_ffn = size.ffn > 0
        if self.has_ffn:
            self.ffn = nn.Sequential(nn.Linear(width, size.ffn), nn.ReLU(), nn.Linear(size.ffn, width))
            self.ffn_norm = nn.LayerNorm(width, size.layer_norm_eps)
        # A separate interaction that the head does not use would never be trained, so it is omitted.
        is_separate = size.interaction == "separate" and size.fusion != "last"
        self.bilinear = Bilinear(width, size.heads) if is_separate else None
        # NOTE[DIFF] The paper has no dropout in the encoder, so the default is 0.
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x_BFD: Tensor, plain: bool, allowed_FF: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q_BFD, k_BFD = self.project(x_BFD)
        left_BFD, right_BFD = (q_BFD, k_BFD) if self.bilinear is None else self.bilinear(x_BFD)
        attend = attend_to_interactions if plain else attend_fused
        heads_BFD = attend(q_BFD, k_BFD, self.value(x_BFD), self.heads, self.score_divisor, allowed_FF)
        x_BFD = self.attention_norm(x_BFD + self.dropout(self.out(heads_BFD)))
        if self.has_ffn:
            x_BFD = self.ffn_norm(x_BFD + self.dropout(self.ffn(x_BFD)))  # Eq. 10
        return x_BFD, left_BFD, right_BFD

    @property
    def output_norm(self) -> nn.LayerNorm:
        """The norm of the block's output."""
        return self.ffn_norm if self.has_ffn else self.attention_norm


class STEC(nn.Module):
    """The model: ids and values -> logits.

    With last = "block", only the interaction of the last block is computed, because nothing uses the rest.

    Args:
        fields: The model's fields. Only attention = "request" uses their is_context.
        size: The options.
        plain: Whether to compute the interactions as written in the paper. The default, factorized form gives the same
            logits, gradients and running statistics from the same state dict, without storing a (B, F, F, D) tensor.
            It requires a linear head, so a model with an MLP head is always plain.
    """

    allowed_FF: Tensor | None
    pairs_P: Tensor | None

    def __init__(self, fields: Fields, size: STECConfig, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain or bool(size.mlp)
        self.fusion = size.fusion
        self.fields = fields.count
        assert size.attention == "full" or len(fields.is_context) == self.fields
        allowed_FF = request_mask(fields.is_context) if size.attention == "request" else None
        self.register_buffer("allowed_FF", allowed_FF, persistent=False)
        self.register_buffer("pairs_P", pairs_in_head(size.pairs, self.fields), persistent=False)
        pairs = self.fields**2 if self.pairs_P is None else len(self.pairs_P)
        blocks = size.blocks - (size.last == "block")
        levels_in_head = 1 if size.fusion == "last" else blocks + 1
        self.embedding = FeatureEmbedding(fields, size.embedding, size.embedding_std)
        self.embedding_norm = embedding_norm(fields, size)
        self.blocks = nn.ModuleList(Block(size) for _ in range(blocks))
        self.last = factors(size, last_kind(size))
        self.norms = nn.ModuleList(level_norm(pairs * size.embedding, size) for _ in range(levels_in_head))
        width = (len(self.norms) if size.fusion == "concat" else 1) * pairs * size.embedding
        self.head = mlp(width, size.mlp, size.mlp_dropout, size.mlp_batch_norm)
        self.apply(_initialize)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        """Return the logits. Eq. 12 is their binary cross-entropy.

        Shape: ids int64 (B, categorical), values (B, numeric) -> (B).
        """
        levels = self.levels(self.embed(ids, values))[-len(self.norms) :]
        return self.predict_plain(levels) if self.plain else self.predict_factorized(levels)

    def embed(self, ids: Tensor, values: Tensor) -> Tensor:
        """Return the fields' vectors, normalized if the model has an embedding norm. Shape: (B, F, D)."""
        x_BFD: Tensor = self.embedding(ids, values)
        return x_BFD if self.embedding_norm is None else self.embedding_norm(x_BFD)

    def levels(self, x_BFD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the factors of every level: those of the blocks, then those of the standalone interaction."""
        levels = []
        for block in self.blocks:
            x_BFD, left_BFD, right_BFD = block(x_BFD, self.plain, self.allowed_FF)
            levels.append((left_BFD, right_BFD))
        return [*levels, self.last(x_BFD)]

    def predict_plain(self, levels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Normalize each level over the batch, concatenate (Eq. 11) or add the levels, and return the logits."""
        normalized = [norm(self.in_head(*level)) for norm, level in zip(self.norms, levels, strict=True)]
        fused = torch.stack(normalized).sum(0) if self.fusion == "add" else torch.cat(normalized, 1)
        logit_B: Tensor = self.head(fused)[:, 0]
        return logit_B

    def in_head(self, left_BFD: Tensor, right_BFD: Tensor) -> Tensor:
        """Return a level's interaction in the shape that its norm expects: (B, P * D)."""
        pairs_BPD = interaction(left_BFD, right_BFD).flatten(1, 2)
        return (pairs_BPD if self.pairs_P is None else pairs_BPD.index_select(1, self.pairs_P)).flatten(1)

    def predict_factorized(self, levels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the same logits with the linear head's weights folded into the product (model/stec/factorized.py)."""
        linear: nn.Linear = self.head[0]  # type: ignore[assignment]
        return self.level_logits(levels).sum(0) + linear.bias

    def level_logits(self, levels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return each level's part of the logit. The head must be linear. Shape: (levels in the head, B)."""
        return torch.stack(
            [
                level_logit(left, right, norm, weight, self.pairs_P)
                for (left, right), (norm, weight) in zip(levels, self.norms_and_weights(), strict=True)
            ]
        )

    def norms_and_weights(self) -> list[tuple[nn.BatchNorm1d, Tensor]]:
        """Return the norm and the linear head's weights (P * D) for each level that the head uses."""
        weight: Tensor = self.head[0].weight[0]  # type: ignore[index]
        weights = [weight] * len(self.norms) if self.fusion == "add" else weight.chunk(len(self.norms))
        return list(zip(self.norms, weights, strict=True))  # type: ignore[arg-type]


def stec_for(schema: FeatureSchema, sizes: Sequence[int], size: STECConfig) -> STEC:
    """Return a new model for a schema. `sizes` are the vocabulary sizes of its categorical fields."""
    return STEC(fields_of(schema, sizes), size)


def cost_note(size: STECConfig, fields: int) -> str | None:
    """Return a message about the cost of an MLP head, to be shown before training, or None for a linear head."""
    if not size.mlp:
        return None
    floats = fields**2 * size.embedding
    return (
        f"mlp = {list(size.mlp)} trains in the plain form, with {fields} x {fields} x {size.embedding} = {floats:,} "
        "numbers and their gradients in memory for each row and level. Its bundle has no kernel, no explanation and no "
        "cascade. With mlp = [], the bundle can have all of these, and training is several times faster."
    )


def score_divisor(size: STECConfig) -> float:
    """Return the divisor of an interaction's sum over the head width, from Eq. 6 or from Figure 2a's AvgPool."""
    per_head = size.embedding // size.heads
    return per_head if size.scale == "mean" else math.sqrt(per_head)


def last_kind(size: STECConfig) -> str:
    """Return the kind of the interaction after the encoder: standalone, or the last block's if last = "block".

    NOTE[DIFF] The paper does not specify the kind of the standalone interaction if the others are explicit; here it is
    "qk".
    """
    if size.last == "block":
        return "qk" if size.interaction == "qk" else "xwx"
    return "xwx" if size.interaction == "xwx" else "qk"


def embedding_norm(fields: Fields, size: STECConfig) -> EmbeddingNorm | None:
    """Return the norm of the embeddings, or None.

    NOTE[DIFF] The paper does not normalize the embeddings.
    """
    if size.embedding_norm == "none":
        return None
    return EmbeddingNorm(len(fields.sizes), fields.numeric, size.embedding, size.embedding_norm)


def level_norm(channels: int, size: STECConfig) -> nn.BatchNorm1d:
    """Return the batch norm of a level.

    NOTE[DIFF] The paper does not state eps, so any level_eps is a reading of it. The default is that of torch. A
    level_eps_relative is a departure.
    """
    # With the defaults, the running statistics start as in earlier versions.
    is_default = (size.level_eps, size.level_eps_relative) == (NORM_EPS, 0.0)
    norm = nn.BatchNorm1d(channels) if is_default else BatchNorm(channels, size.level_eps, size.level_eps_relative)
    if size.mlp_batch_norm:  # the next batch norm would cancel this shift, so it would never be trained
        norm.register_parameter("bias", None)
    return norm


def _initialize(module: nn.Module) -> None:
    initialize(module)
    if isinstance(module, Bilinear):
        for head_KK in module.weight.unbind(0):
            nn.init.xavier_normal_(head_KK)
