"""The encoder's layers in the serving graph: the model's layers, rearranged for a runtime with one thread.

Shape legend: N candidates, F fields, D width, H heads, K = D / H, R = N * F rows (the fields of all candidates, one
candidate after another). The rearrangement is exact. Constants are folded in float64 and rounded once.
"""

import itertools

import torch
from torch import Tensor, nn

from contract.tokens import MAX_NORMALIZED
from model.stec.stec import STEC, Bilinear, Block, Projections

# Within float32's limits by a wide margin, even after exp, multiplication by the values and the sum over fields.
MAX_SAFE_SCORE = 60.0


@torch.no_grad()
def score_bounds(model: STEC) -> list[float]:
    """Return a bound on the absolute value of each block's attention scores that holds for any request.

    The model's embedding norm must be folded (see exact_copy()). The inputs of the first block are rows of a table, a
    vector times a clipped number plus an offset, or the vector of a missing number. The inputs of later blocks
    are n * gain + shift, where the length of the layer-normalized n is at most sqrt(D). If n is extended by a 1, the
    score is a bilinear form of two vectors whose lengths are at most sqrt(D + 1).
    """
    first = blocks_of(model)[0]
    assert model.embedding_norm is None
    embedding = model.embedding
    largest, offset = embedding.alpha * MAX_NORMALIZED, embedding.offset
    numbers = [largest] if offset is None else [offset + largest, offset - largest]
    numbers += [] if embedding.beta is None else [embedding.beta]
    rows = torch.cat([embedding.table.weight, *numbers])
    q, k = (rows @ split_heads(w, first.heads) for w in matrices(first.project))
    bounds = [float((q.norm(dim=2).amax(1) * k.norm(dim=2).amax(1)).max()) / first.score_divisor]
    for before, block in itertools.pairwise(blocks_of(model)):
        norm = before.output_norm
        extended = torch.cat([torch.diag(norm.weight), norm.bias[None]])
        q, k = (extended @ split_heads(w, block.heads) for w in matrices(block.project))
        form = torch.linalg.matrix_norm(q @ k.transpose(1, 2), 2).max()
        bounds.append(float(form) * len(extended) / block.score_divisor)
    return bounds


def matrices(factors: Projections | Bilinear) -> tuple[Tensor, Tensor]:
    """Return the matrices that compute a row's two factors, as weights of linear layers: (D out, D in) each."""
    if isinstance(factors, Projections):
        return factors.query.weight, factors.key.weight
    right = torch.block_diag(*factors.weight)
    return torch.eye(len(right), dtype=right.dtype), right


def blocks_of(model: STEC) -> list[Block]:
    """Return the model's blocks."""
    return list(model.blocks)  # type: ignore[arg-type]


class FoldedBlock(nn.Module):
    """An encoder layer in three steps: project, attend and finish.

    The steps are separate, so that some of them can be applied separately to a request's context and to its candidates.
    The layer norms are computed as matrix products: with a small D, a runtime's loops over short rows would be several
    times as expensive. Their scale, shift and centering are folded into neighboring layers.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bilinear: Tensor
    out: Tensor
    center: Tensor
    mean: Tensor
    eps: Tensor
    ones: Tensor
    inner: Tensor
    inner_bias: Tensor
    skip: Tensor
    outer: Tensor
    outer_bias: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, block: Block, largest_score: float) -> None:
        """Fold a block.

        Args:
            block: The model's block, in float64.
            largest_score: A bound on the absolute value of the block's attention scores (see score_bounds()).
        """
        super().__init__()
        self.scores_are_bounded = largest_score <= MAX_SAFE_SCORE
        self.q_scale = 1 / block.score_divisor
        self.has_ffn = block.has_ffn
        self.is_separate = block.bilinear is not None
        width = block.out.in_features
        center = torch.eye(width, dtype=torch.float64) - 1 / width
        query, key = matrices(block.project)
        constants = {
            "query": split_heads(query * self.q_scale, block.heads),
            "key": split_heads(key, block.heads),
            "value": split_heads(block.value.weight, block.heads),
            "out": (block.out.weight.T @ center).unflatten(0, (block.heads, -1)),
            "center": center,
            "mean": torch.full((width, 1), 1 / width),
            "eps": torch.full((1,), block.attention_norm.eps),
            "ones": torch.ones(1, width),
            "scale": torch.diag(block.output_norm.weight),
            "shift": block.output_norm.bias,
        }
        if self.has_ffn:
            constants |= fold_ffn(block, center)
        if block.bilinear is not None:
            constants["bilinear"] = matrices(block.bilinear)[1].T
        for name, constant in constants.items():
            self.register_buffer(name, constant.contiguous().float())

    def project(self, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v. Shape: (R, D) -> (H, R, K) each.

        q is divided by the score's divisor, and the level's constants compensate for this. The products are per head,
        so that no transpose is needed before the attention.
        """
        return x_RD @ self.query, x_RD @ self.key, x_RD @ self.value

    def level_scale(self) -> float:
        """Return the ratio of this block's left factor to the model's left factor."""
        return 1.0 if self.is_separate else self.q_scale

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Let the fields of q attend to those of k and v. Shape: (H, N, F, K) each -> (H, N, F of q, K)."""
        score = q @ k.transpose(2, 3)
        if not self.scores_are_bounded:
            return score.softmax(3) @ v
        # exp cannot overflow, so the maximum does not have to be subtracted, and the sums are a matrix product.
        unscaled = score.exp()
        sums = unscaled.flatten(0, 2) @ torch.ones(score.shape[3], v.shape[3])
        return (unscaled @ v) / sums.view(q.shape)

    def finish(self, x_RD: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output without the last norm's scale and shift. rescale() or the next layer applies them.

        Shape: x (R, D), attended (H, N, F, K) -> (R, D).
        """
        centered_RD = x_RD @ self.center
        for head_RK, out_KD in zip(attended.flatten(1, 2).unbind(0), self.out.unbind(0), strict=True):
            centered_RD = torch.addmm(centered_RD, head_RK, out_KD)  # concatenating the heads would copy them
        first_RD = self.normalize(centered_RD)
        if not self.has_ffn:
            return first_RD
        hidden = torch.addmm(self.inner_bias, first_RD, self.inner).relu()
        return self.normalize(torch.addmm(self.outer_bias, hidden, self.outer) + first_RD @ self.skip)

    def rescale(self, normalized_RD: Tensor) -> Tensor:
        """Apply the last norm's scale and shift."""
        return torch.addmm(self.shift, normalized_RD, self.scale)

    def normalize(self, centered_RD: Tensor) -> Tensor:
        """Scale rows with mean 0 to variance 1."""
        variance_R1 = torch.addmm(self.eps, centered_RD * centered_RD, self.mean)
        # Broadcast with a matrix product, because dividing each row by a number would again be a loop over short rows.
        spread_RD: Tensor = variance_R1.rsqrt() @ self.ones
        return centered_RD * spread_RD


class FoldedLast(nn.Module):
    """The factors of the last level, from the encoder's normalized output. Shape: (R, D) -> (R, D) each."""

    left: Tensor
    right: Tensor
    left_bias: Tensor
    right_bias: Tensor

    def __init__(self, last: Projections | Bilinear, norm: nn.LayerNorm) -> None:
        super().__init__()
        for name, matrix in zip(("left", "right"), matrices(last), strict=True):
            self.register_buffer(name, (norm.weight[:, None] * matrix.T).float())
            self.register_buffer(f"{name}_bias", (norm.bias @ matrix.T).float())

    def forward(self, x_RD: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addmm(self.left_bias, x_RD, self.left), torch.addmm(self.right_bias, x_RD, self.right)


def fold_ffn(block: Block, center: Tensor) -> dict[str, Tensor]:
    """Return the constants of a block's FFN, which include the norm before it and the centering after it."""
    first, inner, outer = block.attention_norm, block.ffn[0], block.ffn[2]
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    return {
        "inner": first.weight[:, None] * inner.weight.T,
        "inner_bias": first.bias @ inner.weight.T + inner.bias,
        "skip": first.weight[:, None] * center,
        "outer": outer.weight.T @ center,
        "outer_bias": (first.bias + outer.bias) @ center,
    }


def split_heads(weight: Tensor, heads: int) -> Tensor:
    """Return a linear layer's weight (out, in) as one matrix per head: (H, in, K)."""
    by_head: Tensor = weight.T.unflatten(1, (heads, -1)).transpose(0, 1)
    return by_head.contiguous()
