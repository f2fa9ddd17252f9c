"""Folding a model's embedding norm into its embedding. In serving, the norm's statistics are constants.

Each field's vector x becomes scale * x + shift. For a row of the table and for the vector of a missing number, this is
another vector. For a number, value * alpha becomes value * (scale * alpha) + shift, so shift is the embedding's offset.
"""

import copy

import torch

from model.stec.stec import STEC


@torch.no_grad()
def exact_copy(model: STEC) -> STEC:
    """Return a float64 copy of a model without an embedding norm, whose embedding gives the same vectors."""
    exact = copy.deepcopy(model).double().requires_grad_(False)
    embedding, norm = exact.embedding, exact.embedding_norm
    if norm is None:
        return exact
    assert norm.running_mean is not None
    assert norm.running_var is not None
    center_FD, scale_FD = norm.center_and_scale(norm.running_mean, norm.running_var, embedding.table.embedding_dim)
    shift_FD = -center_FD * scale_FD
    categorical = norm.categorical
    starts = embedding.offsets[:categorical]
    sizes = torch.diff(starts, append=torch.tensor([len(embedding.table.weight)]))[:categorical]
    rows = torch.repeat_interleave(torch.arange(categorical), sizes)
    embedding.table.weight.mul_(scale_FD[rows]).add_(shift_FD[rows])
    scale_MD, shift_MD = scale_FD[categorical:], shift_FD[categorical:]
    embedding.alpha.mul_(scale_MD)
    if embedding.beta is not None:
        embedding.beta.mul_(scale_MD).add_(shift_MD)
    embedding.offset = shift_MD if norm.kind == "batch" and len(embedding.alpha) else None
    exact.embedding_norm = None
    return exact
