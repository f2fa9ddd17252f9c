"""STEC with a linear head -> the serving graph: batch norm, head and levels folded into constants.

With running statistics a level of the head is one constant F x F matrix a_c for each embedding
dimension c, and all other constants of all levels are one bias (see model/factorised.py):

    logit = bias + sum over levels, c, i, j of q[i, c] * a_c[i, j] * k[j, c]

Shape legend: R requests, N candidates of all requests, F fields, D width, H heads, K = D / H.
The graph's fields are in serving order: context, then candidate; on each side categorical, then numeric.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contract.schema import FeatureSchema, Kind, Side
from model.factorised import by_dimension
from model.stec import STEC, Block


def serving_order(schema: FeatureSchema) -> list[int]:
    """The model's position of each field in serving order. The model has all categorical fields first."""
    model = [*schema.select("categorical"), *schema.select("numeric")]
    sides: tuple[Side, Side] = ("context", "candidate")
    serving = [f for side in sides for f in [*schema.select("categorical", side), *schema.select("numeric", side)]]
    return [model.index(f) for f in serving]


class FoldedLevel(nn.Module):
    """One level's share of the logit, with all that is constant in it folded. Shape: q, k (N, F, D) -> (N)."""

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

    def forward(self, q_NFD: Tensor, k_NFD: Tensor) -> Tensor:
        qa_DNF = q_NFD.permute(2, 0, 1) @ self.a_DFF
        return (qa_DNF * k_NFD.permute(2, 0, 1)).sum((0, 2))


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


class FoldedBlock(nn.Module):
    """An encoder layer whose q, k and v come from one product. Its q is scaled for the softmax already:
    the level that reads it undoes that in its constants. Shape: (N, F, D) -> (N, F, D), q, k (N, F, D)."""

    qkv: Tensor

    def __init__(self, block: Block) -> None:
        super().__init__()
        width = block.out.in_features
        self.heads, self.scale = block.heads, 1 / math.sqrt(width // block.heads)
        query, key = block.project.query.weight, block.project.key.weight
        self.register_buffer("qkv", torch.cat([query * self.scale, key, block.value.weight]).T.float())
        self.block = block.float()

    def forward(self, x_NFD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_NFD, k_NFD, v_NFD = (x_NFD @ self.qkv).chunk(3, 2)
        q_NHFK, k_NHFK, v_NHFK = (self._heads(t) for t in (q_NFD, k_NFD, v_NFD))
        attended = (q_NHFK @ k_NHFK.transpose(2, 3)).softmax(3) @ v_NHFK
        x_NFD = self.block.attention_norm(x_NFD + self.block.out(attended.transpose(1, 2).flatten(2)))
        return self.block.ffn_norm(x_NFD + self.block.ffn(x_NFD)), q_NFD, k_NFD

    def _heads(self, t_NFD: Tensor) -> Tensor:
        return torch.unflatten(t_NFD, 2, (self.heads, -1)).transpose(1, 2)


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
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in exact.blocks)  # type: ignore[arg-type]
        scales = [*(block.scale for block in self.blocks), 1.0]
        levels = [
            FoldedLevel(norm, weight, order, width, scale)  # type: ignore[arg-type]
            for norm, weight, scale in zip(exact.norms, weights, scales, strict=True)
        ]
        self.levels = nn.ModuleList(levels)
        self.bias = float(linear.bias) + sum(level.constant for level in levels)
        self.context = FoldedEmbedding(exact, schema, "context")
        self.candidate = FoldedEmbedding(exact, schema, "candidate")
        self.register_buffer("table", exact.embedding.table.weight.float())
        self.last = exact.last.float()

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
        shares = []
        for block, level in zip(self.blocks, self.levels, strict=False):
            x_NFD, q_NFD, k_NFD = block(x_NFD)
            shares.append(level(q_NFD, k_NFD))
        shares.append(self.levels[-1](*self.last(x_NFD)))
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
