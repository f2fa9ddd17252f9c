"""Batch norm and a linear layer over an interaction, without the interaction.

The plain form normalises p[b, i, j, c] = q[b, i, c] * k[b, j, c] over the batch and multiplies by
weights: B * F * F * D numbers a level, and as many again for the gradient. But the logit is linear in
p, and the mean and the second moment of p over the batch are matrix products, so with

    mean_c = Q_c' K_c / B                 second_c = (Q_c * Q_c)' (K_c * K_c) / B
    a_c    = w_c * gamma_c / sqrt(second_c - mean_c^2 + eps)

the level's logit is rowsum((Q_c a_c) * K_c) - sum(a_c * mean_c) + sum(w_c * beta_c), summed over c.
Mean and variance are functions of q and k: autograd gives the batch norm's full gradient.

Shape legend as in model/stec.py; Q_c and K_c are (B, F), one matrix for each of the D dimensions.
"""

import torch
from torch import Tensor, nn


def level_logit(q_BFD: Tensor, k_BFD: Tensor, norm: nn.BatchNorm1d, weight: Tensor) -> Tensor:
    """BatchNorm1d over the flattened interaction times `weight`, summed.

    Shape: q, k (B, F, D); norm over F * F * D channels; weight (F * F * D) -> (B).
    In training it updates the norm's running statistics as the norm itself would.

    Raises:
        ValueError: in training, for a batch of one row: it has no variance.
    """
    fields, width = q_BFD.shape[1:]
    # One copy here: on strided input every one of the D matrix products would make its own.
    q_DBF, k_DBF = q_BFD.permute(2, 0, 1).contiguous(), k_BFD.permute(2, 0, 1).contiguous()
    mean_DFF, variance_DFF = _batch_statistics(q_DBF, k_DBF, norm) if norm.training else _running(norm, fields, width)
    gamma_DFF, beta_DFF, weight_DFF = (by_dimension(t, fields, width) for t in (norm.weight, norm.bias, weight))
    a_DFF = weight_DFF * gamma_DFF * (variance_DFF + norm.eps).rsqrt().to(weight.dtype)
    constant = (weight_DFF * beta_DFF).sum() - (a_DFF.to(mean_DFF.dtype) * mean_DFF).sum()
    return ((q_DBF @ a_DFF.contiguous()) * k_DBF).sum((0, 2)) + constant.to(weight.dtype)


def by_dimension(channels: Tensor, fields: int, width: int) -> Tensor:
    """Channels in the plain form's order, (i * F + j) * D + c, as one F x F matrix a dimension: (D, F, F)."""
    return channels.view(fields, fields, width).permute(2, 0, 1)


def _batch_statistics(q_DBF: Tensor, k_DBF: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    rows = q_DBF.shape[1]
    if rows < 2:
        raise ValueError("batch normalisation needs at least two rows: drop a last batch of one")
    # float64, also under autocast: for a field that is nearly constant, float32 loses everything in
    # the subtraction, and the logit is off by tenths.
    with torch.autocast(q_DBF.device.type, enabled=False):
        q_DFB, k_DBF = q_DBF.double().transpose(1, 2), k_DBF.double()
        mean_DFF = q_DFB @ k_DBF / rows
        second_DFF = q_DFB.square() @ k_DBF.square() / rows
        variance_DFF = (second_DFF - mean_DFF.square()).clamp_min(0)
    _update_running(norm, mean_DFF, variance_DFF * (rows / (rows - 1)))
    return mean_DFF, variance_DFF


@torch.no_grad()
def _update_running(norm: nn.BatchNorm1d, mean_DFF: Tensor, unbiased_DFF: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    assert norm.momentum is not None
    norm.num_batches_tracked += 1
    for running, new_DFF in ((norm.running_mean, mean_DFF), (norm.running_var, unbiased_DFF)):
        running.lerp_(new_DFF.permute(1, 2, 0).flatten().to(running.dtype), norm.momentum)


def _running(norm: nn.BatchNorm1d, fields: int, width: int) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return by_dimension(norm.running_mean, fields, width), by_dimension(norm.running_var, fields, width)
