"""Batch norm and a linear layer applied to an interaction, computed without storing the interaction.

The plain form normalizes p[b, i, j, c] = left[b, i, c] * right[b, j, c] over the batch and multiplies it by weights.
This requires B * F * F * D numbers per level, and the same number for the gradient. But the logit is linear in p, and
the mean and the second moment of p over the batch are matrix products. With

    mean_c = L_c' R_c / B                 second_c = (L_c * L_c)' (R_c * R_c) / B
    a_c    = w_c * gamma_c / sqrt(second_c - mean_c^2 + eps)

the level's logit is rowsum((L_c a_c) * R_c) - sum(a_c * mean_c) + sum(w_c * beta_c), summed over c.
Mean and variance are functions of left and right, so autograd computes the full gradient of the batch norm. A pair
that the head does not use has the weight 0 here, because multiplying by zeros costs less than a gather.

Shape legend: as in model/stec/stec.py. L_c and R_c are (B, F), one matrix for each of the D dimensions; P pairs.
"""

import torch
from torch import Tensor, nn

from model.stec import fused
from model.stec.norms import check_rows, update_running, with_eps


def level_logit(
    left_BFD: Tensor, right_BFD: Tensor, norm: nn.BatchNorm1d, weight: Tensor, pairs_P: Tensor | None = None
) -> Tensor:
    """Return a level's part of the logit: the dot product of its normalized interaction and `weight`. Shape: (B).

    During training, this also updates the norm's running statistics, as the norm itself would.

    Args:
        left_BFD: The left factors.
        right_BFD: The right factors.
        norm: The batch norm, over P * D channels.
        weight: (P * D).
        pairs_P: The positions of the pairs in a flattened F x F matrix, int64, or None for all.

    Raises:
        ValueError: During training, if the batch has one row and therefore no variance.
    """
    rows, fields, _ = left_BFD.shape
    if norm.training:
        check_rows(rows)
    is_fused = fused.can_train(left_BFD, right_BFD)
    if not is_fused:  # Copy once here. With strided input, each of the D matrix products would copy again.
        left_BFD, right_BFD = (t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in (left_BFD, right_BFD))
    if norm.training:
        mean_DFF, variance_DFF = (fused.batch_moments if is_fused else batch_moments)(left_BFD, right_BFD)
        variance_C = by_channel(variance_DFF, pairs_P)
        update_running(norm, by_channel(mean_DFF, pairs_P), variance_C.detach() * (rows / (rows - 1)))
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        variance_C = norm.running_var
        mean_DFF, variance_DFF = (by_dimension(t, fields, pairs_P) for t in (norm.running_mean, variance_C))
    gamma_DFF, weight_DFF = (by_dimension(t, fields, pairs_P) for t in (norm.weight, weight))
    # Use the precision of the moments: in gamma's gradient, the gradients of a and of the constant nearly cancel.
    a_DFF = weight_DFF * gamma_DFF * with_eps(norm, variance_DFF, variance_C).rsqrt()
    constant = (weight * norm.bias).sum() - (a_DFF * mean_DFF).sum()
    return (fused.weighted_sum if is_fused else weighted_sum)(left_BFD, right_BFD, a_DFF) + constant.to(weight.dtype)


def batch_moments(left_BFD: Tensor, right_BFD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of left_i * right_j over the batch, float64 (D, F, F)."""
    rows = len(left_BFD)
    # Use float64 even under autocast. For a nearly constant field, float32 would lose all digits in the subtraction,
    # and the logit would be off by tenths.
    with torch.autocast(left_BFD.device.type, enabled=False):
        left_DFB, right_DBF = left_BFD.double().permute(2, 1, 0), right_BFD.double().permute(2, 0, 1)
        mean_DFF = left_DFB @ right_DBF / rows
        second_DFF = left_DFB.square() @ right_DBF.square() / rows
        return mean_DFF, (second_DFF - mean_DFF.square()).clamp_min(0)


def weighted_sum(left_BFD: Tensor, right_BFD: Tensor, a_DFF: Tensor) -> Tensor:
    """Return the sum of left_i * a_ij * right_j over i, j and D. Shape: (B)."""
    left_DBF, right_DBF = left_BFD.permute(2, 0, 1), right_BFD.permute(2, 0, 1)
    return ((left_DBF @ a_DFF.to(left_BFD.dtype).contiguous()) * right_DBF).sum((0, 2))


def by_dimension(channels: Tensor, fields: int, pairs_P: Tensor | None = None) -> Tensor:
    """Return channels as one F x F matrix per dimension, (D, F, F), with 0 for pairs that the head does not use.

    In the plain form, the index of a channel is pair * D + c.
    """
    if pairs_P is not None:
        channels_PD = channels.view(len(pairs_P), -1)
        channels = channels_PD.new_zeros(fields**2, channels_PD.shape[1]).index_copy(0, pairs_P, channels_PD)
    return channels.view(fields, fields, -1).permute(2, 0, 1)


def by_channel(t_DFF: Tensor, pairs_P: Tensor | None) -> Tensor:
    """Apply the inverse of by_dimension(): (D, F, F) -> (P * D)."""
    pairs_PD = t_DFF.permute(1, 2, 0).flatten(0, 1)
    return (pairs_PD if pairs_P is None else pairs_PD[pairs_P]).flatten()
