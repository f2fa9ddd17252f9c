"""Rounding errors of float32, simulated in float64."""

import torch
from torch import Tensor

UNIT_ROUNDOFF = 2.0**-24  # the largest relative error of rounding a number to float32


def relative_errors(like: Tensor) -> Tensor:
    """Return as many random numbers between -UNIT_ROUNDOFF and UNIT_ROUNDOFF, in the tensor's shape and dtype."""
    return UNIT_ROUNDOFF * (2 * torch.rand_like(like) - 1)
