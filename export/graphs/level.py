"""A level's contribution to the logit in serving, where the batch norm and the head are constants:

    sum over c, i, j of left[i, c] * a_c[i, j] * right[j, c]

There is one constant F x F matrix a_c for each embedding dimension c. All other constants are combined in one bias.
left and right are q and k, or the factors selected by the model's option `interaction`. a_c is 0 for pairs that the
head does not use.

Shape legend: R requests, N candidates, D width, U context fields, C candidate fields, F = U + C.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from model.stec.factorized import by_dimension
from model.stec.norms import with_eps
from model.stec.stec import STEC

Factors = tuple[Tensor, Tensor]  # left, right


@dataclass(frozen=True)
class FoldedLevel:
    """A level's constants in float64, with the fields in serving order.

    The level's contribution to the logit is sum(a * (p - mean)) + beta, with p = left[i, c] * right[j, c].

    Attributes:
        a_DFF: The weights of the products.
        mean_DFF: The batch norm's running mean.
        beta: The contribution of the batch norm's shift.
    """

    a_DFF: Tensor
    mean_DFF: Tensor
    beta: float

    @property
    def constant(self) -> float:
        """The part that does not depend on the row."""
        return self.beta - float((self.a_DFF * self.mean_DFF).sum())


@torch.no_grad()
def fold_levels(model: STEC, order: Sequence[int]) -> list[FoldedLevel]:
    """Return all levels of a model with a linear head. Levels that the head does not use are zero.

    Args:
        model: The model, in float64.
        order: The model's position of each field in serving order.
    """
    linear_head(model)
    levels = []
    for norm, weight in model.norms_and_weights():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = weight * norm.weight / with_eps(norm, norm.running_var, norm.running_var).sqrt()
        a_DFF, mean_DFF = (
            by_dimension(channels, len(order), model.pairs_P)[:, order][:, :, order]
            for channels in (scale, norm.running_mean)
        )
        levels.append(FoldedLevel(a_DFF, mean_DFF, float((weight * norm.bias).sum())))
    zero_DFF = torch.zeros_like(levels[0].a_DFF)
    return [*[FoldedLevel(zero_DFF, zero_DFF, 0.0)] * first_in_head(model), *levels]


def first_in_head(model: STEC) -> int:
    """Return the first level that the head uses."""
    return len(model.blocks) + 1 - len(model.norms)


def has_linear_head(model: nn.Module) -> TypeGuard[STEC]:
    """Return whether a model is a STEC with a single linear layer as head. Only such a model can be folded."""
    return isinstance(model, STEC) and len(model.head) == 1


def linear_head(model: STEC) -> nn.Linear:
    """Return the head's only layer.

    Raises:
        ValueError: If the head is an MLP, whose levels cannot be folded.
    """
    linear = model.head[0]
    if not has_linear_head(model) or not isinstance(linear, nn.Linear):
        raise ValueError("the model's head is an MLP; only a linear head can be folded. Train with mlp = [].")
    return linear


class Level(nn.Module):
    """A level for rows that contain all fields. Shape: left, right (D, N, F) -> (N)."""

    a_DFF: Tensor

    def __init__(self, a_DFF: Tensor) -> None:
        super().__init__()
        self.register_buffer("a_DFF", a_DFF.contiguous().float())

    def forward(self, left_DNF: Tensor, right_DNF: Tensor) -> Tensor:
        return ((left_DNF @ self.a_DFF) * right_DNF).sum((0, 2))


class SharedLevel(nn.Module):
    """A level whose context factors do not depend on the candidate.

    Pairs of context fields are computed once per request. For pairs with a candidate field, two vectors are computed
    once per request.

    Shape: context (left, right) (D, R, U), candidate (left, right) (D, N, C), request_index (N) -> (N).
    """

    context_DUU: Tensor
    candidate_DCC: Tensor
    to_right_DUC: Tensor
    to_left_DUC: Tensor

    def __init__(self, a_DFF: Tensor, context_fields: int) -> None:
        super().__init__()
        u, c = slice(None, context_fields), slice(context_fields, None)
        parts = {
            "context_DUU": a_DFF[:, u, u],
            "candidate_DCC": a_DFF[:, c, c],
            "to_right_DUC": a_DFF[:, u, c],
            "to_left_DUC": a_DFF[:, c, u].transpose(1, 2),
        }
        for name, part in parts.items():
            self.register_buffer(name, part.contiguous().float())

    def forward(self, context: Factors, candidate: Factors, request_index: Tensor) -> Tensor:
        (left_DRU, right_DRU), (left_DNC, right_DNC) = context, candidate
        context_R = ((left_DRU @ self.context_DUU) * right_DRU).sum((0, 2))
        for_right_DNC = (left_DRU @ self.to_right_DUC).index_select(1, request_index)
        for_left_DNC = (right_DRU @ self.to_left_DUC).index_select(1, request_index)
        own_DNC = (left_DNC @ self.candidate_DCC + for_right_DNC) * right_DNC + left_DNC * for_left_DNC
        return own_DNC.sum((0, 2)) + context_R.index_select(0, request_index)
