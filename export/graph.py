"""STEC with a linear head -> the serving graph: batch norm, head and levels folded into constants.

With running statistics a level of the head is one constant F x F matrix a_c for each embedding
dimension c, and all other constants of all levels are one bias (see model/factorised.py):

    logit = bias + sum over levels, c, i, j of q[i, c] * a_c[i, j] * k[j, c]

Shape legend: R requests, N candidates of all requests, F fields, D width, H heads, K = D / H; in a
folded block R is the N * F rows of all candidates' fields.
The graph's fields are in serving order: context, then candidate; on each side categorical, then numeric.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contract.schema import FeatureSchema, Kind, Side
from export.block import FoldedBlock, FoldedLast, blocks_of, score_bounds
from model.factorised import by_dimension
from model.stec import STEC


def serving_order(schema: FeatureSchema) -> list[int]:
    """The model's position of each field in serving order. The model has all categorical fields first."""
    model = [*schema.select("categorical"), *schema.select("numeric")]
    sides: tuple[Side, Side] = ("context", "candidate")
    serving = [f for side in sides for f in [*schema.select("categorical", side), *schema.select("numeric", side)]]
    return [model.index(f) for f in serving]


class FoldedLevel(nn.Module):
    """One level's share of the logit, with all that is constant in it folded. Shape: q, k (D, N, F) -> (N)."""

    a_DFF: Tensor

    def __init__(self, norm: nn.BatchNorm1d, weight: Tensor, order: Sequence[int], width: int, q_scale: float) -> None:
        """norm and weight in float64: what is folded here is rounded once, at the end. q comes times q_scale."""
        super().__init__()
        fields = len(order)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = weight * norm.weight / (norm.running_var + norm.eps).sqrt()
        self.constant = float((weight * norm.bias - scale * norm.running_mean).sum())
        a_DFF = by_dimension(scale / q_scale, fields, width)[:, order][:, :, order]
        self.register_buffer("a_DFF", a_DFF.contiguous().float())

    def forward(self, q_DNF: Tensor, k_DNF: Tensor) -> Tensor:
        return ((q_DNF @ self.a_DFF) * k_DNF).sum((0, 2))


class FoldedEmbedding(nn.Module):
    """One side's fields. Shape: ids (rows, categorical), values (rows, numeric) -> (rows, F of the side, D)."""

    offsets: Tensor
    alpha: Tensor

    def __init__(self, model: STEC, schema: FeatureSchema, side: Side) -> None:
        super().__init__()
        categorical = [i for i, f in enumerate(schema.select("categorical")) if f.side == side]
        numeric = [i for i, f in enumerate(schema.select("numeric")) if f.side == side]
        self.numeric = bool(numeric)
        self.register_buffer("offsets", model.embedding.offsets[categorical])
        self.register_buffer("alpha", model.embedding.alpha[numeric].float())

    def forward(self, table: Tensor, ids: Tensor, values: Tensor | None) -> Tensor:
        x = nn.functional.embedding(ids + self.offsets, table)
        if not self.numeric:
            return x
        assert values is not None
        return torch.cat([x, values[:, :, None] * self.alpha], 1)


class ServingGraph(nn.Module):
    """A trained STEC as the service runs it: a request's context once, its candidates behind each other.

    forward's shapes: context_ids int64 (R, Fu), candidate_ids int64 (N, Fc), request_index int64 (N),
    and context_values, candidate_values float32 where the schema has numeric fields -> logit (N).
    Only a linear head folds.
    """

    table: Tensor

    def __init__(self, model: STEC, schema: FeatureSchema) -> None:
        super().__init__()
        exact = copy.deepcopy(model).double().requires_grad_(False)
        (linear,) = exact.head
        assert isinstance(linear, nn.Linear)
        weights = linear.weight[0].chunk(len(exact.norms))
        order, width = serving_order(schema), exact.embedding.table.embedding_dim
        bounds = score_bounds(exact)
        self.blocks = nn.ModuleList(FoldedBlock(b, bound) for b, bound in zip(blocks_of(exact), bounds, strict=True))
        scales = [*(block.q_scale for block in self.blocks), 1.0]
        levels = [
            FoldedLevel(norm, weight, order, width, scale)  # type: ignore[arg-type]
            for norm, weight, scale in zip(exact.norms, weights, scales, strict=True)
        ]
        self.levels = nn.ModuleList(levels)
        self.bias = float(linear.bias) + sum(level.constant for level in levels)
        self.context = FoldedEmbedding(exact, schema, "context")
        self.candidate = FoldedEmbedding(exact, schema, "candidate")
        self.register_buffer("table", exact.embedding.table.weight.float())
        self.last = FoldedLast(exact.last, blocks_of(exact)[-1].ffn_norm)

    def forward(
        self,
        context_ids: Tensor,
        candidate_ids: Tensor,
        request_index: Tensor,
        context_values: Tensor | None = None,
        candidate_values: Tensor | None = None,
    ) -> Tensor:
        context_RFD = self.context(self.table, context_ids, context_values)
        candidate_NFD = self.candidate(self.table, candidate_ids, candidate_values)
        x_NFD = torch.cat([context_RFD.index_select(0, request_index), candidate_NFD], 1)
        fields = x_NFD.shape[1]
        x_RD = x_NFD.flatten(0, 1)
        shares = []
        for number, (block, level) in enumerate(zip(self.blocks, self.levels, strict=False)):
            x_RD = self.blocks[number - 1].rescale(x_RD) if number else x_RD  # type: ignore[operator]
            x_RD, q_HRK, k_HRK = block(x_RD, fields)
            shares.append(level(*(t.transpose(1, 2).unflatten(2, (-1, fields)).flatten(0, 1) for t in (q_HRK, k_HRK))))
        q_RD, k_RD = self.last(x_RD)
        shares.append(self.levels[-1](q_RD.T.unflatten(1, (-1, fields)), k_RD.T.unflatten(1, (-1, fields))))
        return torch.stack(shares).sum(0) + self.bias


class PlainGraph(nn.Module):
    """The model as it trains, behind the serving graph's inputs: for an MLP head, and to measure the folded graph.

    Shape: as ServingGraph.
    """

    def __init__(self, model: STEC, schema: FeatureSchema) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.plain = True
        self.categorical = _columns(schema, "categorical")
        self.numeric = _columns(schema, "numeric")

    def forward(
        self,
        context_ids: Tensor,
        candidate_ids: Tensor,
        request_index: Tensor,
        context_values: Tensor | None = None,
        candidate_values: Tensor | None = None,
    ) -> Tensor:
        ids = torch.cat([context_ids.index_select(0, request_index), candidate_ids], 1)[:, self.categorical]
        parts = [candidate_values] if candidate_values is not None else []
        if context_values is not None:
            parts.insert(0, context_values.index_select(0, request_index))
        values = torch.cat(parts, 1)[:, self.numeric] if parts else ids.new_zeros((ids.shape[0], 0)).float()
        logit: Tensor = self.model(ids, values)
        return logit


def _columns(schema: FeatureSchema, kind: Kind) -> list[int]:
    """For each field of a kind in schema order, its column where context columns come before candidate columns."""
    serving = [*schema.select(kind, "context"), *schema.select(kind, "candidate")]
    return [serving.index(f) for f in schema.select(kind)]
