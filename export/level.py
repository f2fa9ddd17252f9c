"""A level's share of the logit in serving, where its batch norm and the head are constants:

    sum over c, i, j of q[i, c] * a_c[i, j] * k[j, c]

with one constant F x F matrix a_c for each embedding dimension c; what else is constant goes into one bias.

Shape legend: R requests, N candidates, D width, U context fields, C candidate fields, F = U + C.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.factorised import by_dimension
from model.stec import STEC

Projected = tuple[Tensor, Tensor]  # q, k


@dataclass(frozen=True)
class FoldedLevel:
    """A level's constants in float64, its fields in serving order: a and the batch norm's mean (D, F, F), and what
    its beta adds. The level's share of the logit is sum(a * (p - mean)) + beta, with p = q[i, c] * k[j, c]."""

    a_DFF: Tensor
    mean_DFF: Tensor
    beta: float

    @property
    def constant(self) -> float:
        """What the level adds, whatever the row."""
        return self.beta - float((self.a_DFF * self.mean_DFF).sum())


@torch.no_grad()
def fold_levels(model: STEC, order: Sequence[int]) -> list[FoldedLevel]:
    """Of a model in float64 with a linear head. order: the model's position of each field in serving order."""
    levels = []
    for norm, weight in zip(model.norms, linear_head(model).weight[0].chunk(len(model.norms)), strict=True):
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = weight * norm.weight / (norm.running_var + norm.eps).sqrt()
        a_DFF, mean_DFF = (_in_order(channels, order) for channels in (scale, norm.running_mean))
        levels.append(FoldedLevel(a_DFF, mean_DFF, float((weight * norm.bias).sum())))
    return levels


def linear_head(model: STEC) -> nn.Linear:
    """Raises ValueError for an MLP head: no level of it folds."""
    linear = model.head[0]
    if len(model.head) > 1 or not isinstance(linear, nn.Linear):
        raise ValueError("the model's head is an MLP: only a linear head folds; train with mlp = []")
    return linear


def _in_order(channels: Tensor, order: Sequence[int]) -> Tensor:
    """A batch norm's channels -> (D, F, F), fields in that order."""
    return by_dimension(channels, len(order), len(channels) // len(order) ** 2)[:, order][:, :, order]


class Level(nn.Module):
    """Of rows that hold all fields. Shape: q, k (D, N, F) -> (N)."""

    a_DFF: Tensor

    def __init__(self, a_DFF: Tensor) -> None:
        super().__init__()
        self.register_buffer("a_DFF", a_DFF.contiguous().float())

    def forward(self, q_DNF: Tensor, k_DNF: Tensor) -> Tensor:
        return ((q_DNF @ self.a_DFF) * k_DNF).sum((0, 2))


class SharedLevel(nn.Module):
    """The same where a context's q and k do not depend on the candidate: what only they meet is computed once.

    A candidate's own fields meet each other, and the context's through two vectors of its request.
    Shape: context (q, k) (D, R, U), candidate (q, k) (D, N, C), request_index (N) -> (N).
    """

    context_DUU: Tensor
    candidate_DCC: Tensor
    to_key_DUC: Tensor
    to_query_DUC: Tensor

    def __init__(self, a_DFF: Tensor, context_fields: int) -> None:
        super().__init__()
        u, c = slice(None, context_fields), slice(context_fields, None)
        parts = {
            "context_DUU": a_DFF[:, u, u],
            "candidate_DCC": a_DFF[:, c, c],
            "to_key_DUC": a_DFF[:, u, c],
            "to_query_DUC": a_DFF[:, c, u].transpose(1, 2),
        }
        for name, part in parts.items():
            self.register_buffer(name, part.contiguous().float())

    def forward(self, context: Projected, candidate: Projected, request_index: Tensor) -> Tensor:
        (q_DRU, k_DRU), (q_DNC, k_DNC) = context, candidate
        context_R = ((q_DRU @ self.context_DUU) * k_DRU).sum((0, 2))
        for_key_DNC = (q_DRU @ self.to_key_DUC).index_select(1, request_index)
        for_query_DNC = (k_DRU @ self.to_query_DUC).index_select(1, request_index)
        own_DNC = (q_DNC @ self.candidate_DCC + for_key_DNC) * k_DNC + q_DNC * for_query_DNC
        return own_DNC.sum((0, 2)) + context_R.index_select(0, request_index)
