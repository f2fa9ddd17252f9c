"""The serving graph of STEC with a linear head. It uses standard operators, so it runs wherever onnxruntime runs.

Batch norms, the head and the levels are folded into constants (export/graphs/level.py). With attention = "request", the
context tower runs once per request.

Shape legend: R requests, N candidates of all requests, U context fields, C candidate fields, F = U + C, D width,
H heads, K = D / H. The graph's fields are in serving order: context, then candidate; on each side categorical, then
numeric.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contract.schema import FeatureSchema, Side
from export.graphs.block import FoldedBlock, FoldedLast, blocks_of, matrices, score_bounds
from export.graphs.embedding import exact_copy
from export.graphs.level import Factors, Level, SharedLevel, first_in_head, fold_levels, linear_head
from model.layers import FeatureEmbedding, number_vectors
from model.stec.stec import STEC


def serving_order(schema: FeatureSchema) -> list[int]:
    """Return each field's position in the model, in serving order. In the model, all categorical fields come first."""
    model = [*schema.select("categorical"), *schema.select("numeric")]
    return [model.index(f) for f in schema.in_serving_order()]


class SideEmbedding(nn.Module):
    """The embeddings of one side's fields.

    Shape: ids (rows, categorical), values (rows, numeric) or None without numeric fields -> (rows, F of the side, D).
    A value may be NaN if the model has missing vectors.
    """

    offsets: Tensor
    alpha: Tensor
    beta: Tensor | None
    offset: Tensor | None

    def __init__(self, embedding: FeatureEmbedding, schema: FeatureSchema, side: Side) -> None:
        super().__init__()
        categorical = [i for i, f in enumerate(schema.select("categorical")) if f.side == side]
        numeric = [i for i, f in enumerate(schema.select("numeric")) if f.side == side]
        self.fields = len(categorical) + len(numeric)
        self.register_buffer("offsets", embedding.offsets[categorical])
        self.register_buffer("alpha", embedding.alpha.detach()[numeric].float())
        beta = None if embedding.beta is None else embedding.beta.detach()[numeric].float()
        self.register_buffer("beta", beta)
        offset = None if embedding.offset is None else embedding.offset[numeric].float()
        self.register_buffer("offset", offset)

    def forward(self, table: Tensor, ids: Tensor, values: Tensor | None) -> Tensor:
        parts: list[Tensor] = [nn.functional.embedding(ids + self.offsets, table)]
        if values is not None:
            parts.append(number_vectors(values, self.alpha, self.beta, self.offset))
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class Rows:
    """The fields of rows, one row after another.

    Attributes:
        x: (rows * fields, D).
        q: (H, rows * fields, K).
        k: (H, rows * fields, K).
        v: (H, rows * fields, K).
        fields: The number of fields of a row.
        bilinear: The matrix (D, D) of an interaction other than q times k, or None.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    fields: int
    bilinear: Tensor | None

    def by_row(self, t_HRK: Tensor) -> Tensor:
        """Reshape (H, rows * fields, K) to (H, rows, fields, K)."""
        by_row: Tensor = t_HRK.unflatten(1, (-1, self.fields))
        return by_row

    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, (H, rows, fields, K) each."""
        return self.by_row(self.q), self.by_row(self.k), self.by_row(self.v)

    def factors(self) -> Factors:
        """Return the left and right factors in the shape that a level expects: (D, rows, fields)."""
        if self.bilinear is not None:
            return by_dimension((self.x, self.x @ self.bilinear), self.fields)
        q, k = (t.transpose(1, 2).unflatten(2, (-1, self.fields)).flatten(0, 1) for t in (self.q, self.k))
        return q, k


class ServingGraph(nn.Module):
    """A trained STEC for serving. Its inputs are one context per request, and the candidates of all requests.

    The model must have a linear head.

    Shape: context_ids int64 (R, U), candidate_ids int64 (N, C), request_index int64 (N), and context_values and
    candidate_values float32 for sides with numeric fields -> logit (N).
    """

    table: Tensor

    def __init__(self, model: STEC, schema: FeatureSchema) -> None:
        super().__init__()
        exact = exact_copy(model)
        blocks = blocks_of(exact)
        self.context_is_shared = exact.allowed_FF is not None
        self.context = SideEmbedding(exact.embedding, schema, "context")
        self.candidate = SideEmbedding(exact.embedding, schema, "candidate")
        self.register_buffer("table", exact.embedding.table.weight.float())
        folded = [FoldedBlock(block, bound) for block, bound in zip(blocks, score_bounds(exact), strict=True)]
        self.blocks = nn.ModuleList(folded)
        self.last = FoldedLast(exact.last, blocks[-1].output_norm)
        levels = fold_levels(exact, serving_order(schema))
        self.bias = float(linear_head(exact).bias) + sum(level.constant for level in levels)
        scales = [*(b.level_scale() for b in folded), 1.0]
        constants = [level.a_DFF / s for level, s in zip(levels, scales, strict=True)]
        self.first = first_in_head(exact)
        self.levels = nn.ModuleList(
            SharedLevel(a_DFF, self.context.fields) if self.context_is_shared else Level(a_DFF)
            for a_DFF in constants[self.first :]
        )

    def forward(
        self,
        context_ids: Tensor,
        candidate_ids: Tensor,
        request_index: Tensor,
        context_values: Tensor | None = None,
        candidate_values: Tensor | None = None,
    ) -> Tensor:
        context_RD = self.context(self.table, context_ids, context_values).flatten(0, 1)
        candidate_RD = self.candidate(self.table, candidate_ids, candidate_values).flatten(0, 1)
        answer = self.share_context if self.context_is_shared else self.share_nothing
        return torch.stack(answer(context_RD, candidate_RD, request_index)).sum(0) + self.bias

    def share_context(self, context_RD: Tensor, candidate_RD: Tensor, request_index: Tensor) -> list[Tensor]:
        """Return each level's contribution with attention = "request": context rows do not depend on candidates."""
        shares = []
        for number, block in enumerate(self._blocks()):
            context = self.project(number, context_RD, self.context.fields)
            candidate = self.project(number, candidate_RD, self.candidate.fields)
            if number >= self.first:
                level = self.levels[number - self.first]
                shares.append(level(context.factors(), candidate.factors(), request_index))
            context_RD = block.finish(context.x, block.attend(*context.qkv()))
            k, v = (
                # For each candidate, the context fields followed by the candidate's own fields: (H, N, F, K).
                torch.cat([context.by_row(shared).index_select(1, request_index), candidate.by_row(own)], 2)
                for shared, own in ((context.k, candidate.k), (context.v, candidate.v))
            )
            candidate_RD = block.finish(candidate.x, block.attend(candidate.by_row(candidate.q), k, v))
        context_factors = by_dimension(self.last(context_RD), self.context.fields)
        candidate_factors = by_dimension(self.last(candidate_RD), self.candidate.fields)
        return [*shares, self.levels[-1](context_factors, candidate_factors, request_index)]

    def share_nothing(self, context_RD: Tensor, candidate_RD: Tensor, request_index: Tensor) -> list[Tensor]:
        """Return each level's contribution to the logit with the paper's attention.

        After the first attention, every row depends on the candidate. What comes before it could be shared but is not:
        with these operators, copying it to each candidate is as expensive as computing it again.
        """
        fields = self.context.fields + self.candidate.fields
        contexts = context_RD.unflatten(0, (-1, self.context.fields)).index_select(0, request_index)
        x_RD = torch.cat([contexts, candidate_RD.unflatten(0, (-1, self.candidate.fields))], 1).flatten(0, 1)
        shares = []
        for number, block in enumerate(self._blocks()):
            rows = self.project(number, x_RD, fields)
            if number >= self.first:
                shares.append(self.levels[number - self.first](*rows.factors()))
            x_RD = block.finish(rows.x, block.attend(*rows.qkv()))
        return [*shares, self.levels[-1](*by_dimension(self.last(x_RD), fields))]

    def project(self, number: int, x_RD: Tensor, fields: int) -> Rows:
        """Return a block's inputs, after applying the scale and shift that the previous block left out."""
        block = self._blocks()[number]
        x_RD = self._blocks()[number - 1].rescale(x_RD) if number else x_RD
        return Rows(x_RD, *block.project(x_RD), fields, block.bilinear if block.is_separate else None)

    def _blocks(self) -> list[FoldedBlock]:
        return list(self.blocks)  # type: ignore[arg-type]


def by_dimension(factors_RD: Factors, fields: int) -> Factors:
    """Reshape factors of shape (rows * fields, D) to (D, rows, fields)."""
    left, right = (t_RD.T.unflatten(1, (-1, fields)) for t_RD in factors_RD)
    return left, right


class ScreenGraph(nn.Module):
    """The first stage of a cascade: the first level, with all other levels at their average.

    The inputs and outputs have the same shapes as in ServingGraph. The model must have a linear head that uses the
    first level.
    """

    table: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, model: STEC, schema: FeatureSchema) -> None:
        super().__init__()
        exact = exact_copy(model)
        self.context = SideEmbedding(exact.embedding, schema, "context")
        self.candidate = SideEmbedding(exact.embedding, schema, "candidate")
        self.register_buffer("table", exact.embedding.table.weight.float())
        first, *others = fold_levels(exact, serving_order(schema))
        self.bias = float(linear_head(exact).bias) + first.constant + sum(level.beta for level in others)
        self.level = SharedLevel(first.a_DFF, self.context.fields)
        block = blocks_of(exact)[0]
        for name, matrix in zip(("left", "right"), matrices(block.bilinear or block.project), strict=True):
            self.register_buffer(name, matrix.float())

    def forward(
        self,
        context_ids: Tensor,
        candidate_ids: Tensor,
        request_index: Tensor,
        context_values: Tensor | None = None,
        candidate_values: Tensor | None = None,
    ) -> Tensor:
        context = self.factors(self.context(self.table, context_ids, context_values))
        candidate = self.factors(self.candidate(self.table, candidate_ids, candidate_values))
        logit: Tensor = self.level(context, candidate, request_index) + self.bias
        return logit

    def factors(self, x_BFD: Tensor) -> Factors:
        """Return the left and right factors, (D, rows, fields) each."""
        x_DR, fields = x_BFD.flatten(0, 1).T, x_BFD.shape[1]
        return (self.left @ x_DR).unflatten(1, (-1, fields)), (self.right @ x_DR).unflatten(1, (-1, fields))
