"""Norms for numbers whose variance may be far below 1: embeddings under a strong L2 penalty, and their products.

Statistics are kept per channel, as in torch's batch norm, and are constants in serving. The running statistics start
with those of the first batch. torch starts them at a variance of 1, and its moving average needs 220 batches to forget
that next to a variance of 1e-10.

Shape legend: B rows, F fields, D embedding width, C channels.
"""

from typing import Literal

import torch
from torch import Tensor, nn

NORM_EPS = 1e-5  # of torch's layer norm and batch norm
# Far below the variance of embeddings at a standard deviation of 1e-4. A field that is always zero stays zero.
MEAN_SQUARE_EPS = 1e-12


class BatchNorm(nn.BatchNorm1d):
    """A batch norm with an eps that may depend on the channels' mean variance.

    eps is added to the variance, and `relative_eps` times the mean variance over all channels. If both are 0, because
    every channel is constant, the output is the shift. In training, the gradient includes that of the mean variance.

    Shape: (B, C) -> (B, C).
    """

    def __init__(self, channels: int, eps: float, relative_eps: float = 0.0) -> None:
        super().__init__(channels, eps)
        self.relative_eps = relative_eps

    def forward(self, x_BC: Tensor) -> Tensor:
        mean_C, variance_C = batch_statistics(self, x_BC)
        # In float32, the gradient of the square root would overflow at a variance of 1e-26.
        variance_C = variance_C.double()
        scale_C = with_eps(self, variance_C, variance_C).rsqrt().to(x_BC.dtype)
        y_BC = (x_BC - mean_C) * (scale_C * self.weight)
        return y_BC if self.bias is None else y_BC + self.bias


class EmbeddingNorm(nn.BatchNorm1d):
    """A norm of each field's vector, without trained parameters.

    With kind "rms", each field has one scale: 1 / its root mean square over the rows and dimensions. With "batch", each
    number of a vector is normalized over the rows. For numeric fields, the dimensions share the variance: their vectors
    are value * alpha, of which a scale for each dimension would only keep alpha's signs.

    Shape: (B, F, D) -> (B, F, D). The first `categorical` fields are categorical.
    """

    def __init__(self, categorical: int, numeric: int, width: int, kind: Literal["batch", "rms"]) -> None:
        super().__init__((categorical + numeric) * width, NORM_EPS, affine=False)
        self.categorical, self.kind = categorical, kind

    def forward(self, x_BFD: Tensor) -> Tensor:
        mean_C, variance_C = batch_statistics(self, x_BFD.flatten(1))
        center_FD, scale_FD = self.center_and_scale(mean_C, variance_C, x_BFD.shape[2])
        return (x_BFD - center_FD.to(x_BFD.dtype)) * scale_FD.to(x_BFD.dtype)

    def center_and_scale(self, mean_C: Tensor, variance_C: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return what is subtracted from each vector, and what the difference is multiplied by, float64 (F, D) each."""
        mean_FD, variance_FD = (t.double().view(-1, width) for t in (mean_C, variance_C))
        square_F1 = (variance_FD + mean_FD.square()).mean(1, keepdim=True)
        if self.kind == "rms":
            return torch.zeros_like(mean_FD), (square_F1 + MEAN_SQUARE_EPS).rsqrt().expand_as(mean_FD)
        own, shared = variance_FD[: self.categorical], variance_FD[self.categorical :].mean(1, keepdim=True)
        variance_FD = torch.cat([own, shared.expand(-1, width)])
        # eps is relative to the field's size. A small absolute eps would amplify the rounding errors of a constant
        # field, and a large one would be above the variance of the others.
        return mean_FD, (variance_FD + self.eps * square_F1 + MEAN_SQUARE_EPS).rsqrt()


def batch_statistics(norm: BatchNorm | EmbeddingNorm, x_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance that a norm uses, (C) each.

    During training, they are those of the batch, with the biased variance, and the running statistics are updated.
    Otherwise, they are the running statistics.
    """
    if not norm.training:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return norm.running_mean, norm.running_var
    check_rows(len(x_BC))
    variance_C, mean_C = torch.var_mean(x_BC, 0, correction=0)
    update_running(norm, mean_C, variance_C * (len(x_BC) / (len(x_BC) - 1)))
    return mean_C, variance_C


def with_eps(norm: nn.BatchNorm1d, variance: Tensor, variance_C: Tensor) -> Tensor:
    """Return the variance plus the norm's eps, or 1 where this is 0, because the product minus its mean is then 0 too.

    Args:
        norm: The norm.
        variance: Variances in any shape.
        variance_C: The variance of each of the norm's channels, whose mean a relative eps depends on.
    """
    if not isinstance(norm, BatchNorm) or norm.relative_eps == 0:
        return variance + norm.eps
    sum_ = variance + (norm.eps + norm.relative_eps * variance_C.mean())
    return sum_.masked_fill(sum_ == 0, 1) if norm.eps == 0 else sum_


@torch.no_grad()
def update_running(norm: nn.BatchNorm1d, mean_C: Tensor, unbiased_C: Tensor) -> None:
    """Update a batch norm's running mean and (unbiased) variance as its forward() does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    assert norm.momentum is not None
    norm.num_batches_tracked += 1
    for running, new_C in ((norm.running_mean, mean_C), (norm.running_var, unbiased_C)):
        share: Tensor | float = norm.momentum
        if isinstance(norm, BatchNorm | EmbeddingNorm):  # The first batches have equal shares.
            share = norm.num_batches_tracked.to(running.dtype).reciprocal().clamp_min(norm.momentum)
        running.lerp_(new_C.to(running.dtype), share)


def check_rows(rows: int) -> None:
    """Check that a batch has a variance.

    Raises:
        ValueError: If it has one row.
    """
    if rows < 2:
        raise ValueError("batch normalization needs at least two rows; drop a last batch of one row")
