"""The encoder's layers as the serving graph runs them: the model's, rearranged for a runtime with one thread.

Shape legend: N candidates, F fields, D width, H heads, K = D / H, R = N * F rows, all candidates' fields
behind each other. Everything here is exact; constants are folded in float64 and rounded once.
"""

import itertools

import torch
from torch import Tensor, nn

from contract.tokens import MAX_NORMALIZED
from model.stec.stec import STEC, Bilinear, Block, Projections

# exp of it, times values and summed over fields, is far from float32's limits on either side.
LARGEST_SCORE = 60.0


@torch.no_grad()
def score_bounds(model: STEC) -> list[float]:
    """For each block, what no attention score's absolute value can exceed, whatever the request.

    The first block reads rows of a table, or a vector times a number that is clipped. The others read
    n * gain + shift, where a layer norm's n has a length of at most sqrt(D): with n extended by a 1 the
    score is a bilinear form of two vectors no longer than sqrt(D + 1).
    """
    first = blocks_of(model)[0]
    numbers = model.embedding.alpha * MAX_NORMALIZED
    rows = torch.cat([model.embedding.table.weight, numbers])
    q, k = (rows @ _by_head(w, first.heads) for w in matrices(first.project))
    bounds = [float((q.norm(dim=2).amax(1) * k.norm(dim=2).amax(1)).max()) / first.score_divisor]
    for before, block in itertools.pairwise(blocks_of(model)):
        norm = before.output_norm
        extended = torch.cat([torch.diag(norm.weight), norm.bias[None]])
        q, k = (extended @ _by_head(w, block.heads) for w in matrices(block.project))
        form = torch.linalg.matrix_norm(q @ k.transpose(1, 2), 2).max()
        bounds.append(float(form) * len(extended) / block.score_divisor)
    return bounds


def matrices(factors: Projections | Bilinear) -> tuple[Tensor, Tensor]:
    """What a row's two factors are products with, as linear layers' weights: (D out, D in) each."""
    if isinstance(factors, Projections):
        return factors.query.weight, factors.key.weight
    right = torch.block_diag(*factors.weight)
    return torch.eye(len(right), dtype=right.dtype), right


def blocks_of(model: STEC) -> list[Block]:
    return list(model.blocks)  # type: ignore[arg-type]


class FoldedBlock(nn.Module):
    """An encoder layer in three steps, project, attend and finish, on rows of fields behind each other.

    Apart, so that the rows of a request's context and those of its candidates can go through some of them on their
    own. Its layer norms are matrix products: with D as small as here, a runtime's own loops over short rows
    cost several times as much. Their scale and shift, and the centring, are folded into the neighbours.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bilinear: Tensor
    out: Tensor
    centre: Tensor
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
        """largest_score: a proven bound of the absolute value of this block's attention scores."""
        super().__init__()
        self.scores_are_bounded = largest_score <= LARGEST_SCORE
        self.q_scale = 1 / block.score_divisor
        self.has_ffn = block.has_ffn
        self.is_separate = block.bilinear is not None
        width = block.out.in_features
        centre = torch.eye(width, dtype=torch.float64) - 1 / width
        query, key = matrices(block.project)
        constants = {
            "query": _by_head(query * self.q_scale, block.heads),
            "key": _by_head(key, block.heads),
            "value": _by_head(block.value.weight, block.heads),
            "out": (block.out.weight.T @ centre).unflatten(0, (block.heads, -1)),
            "centre": centre,
            "mean": torch.full((width, 1), 1 / width),
            "eps": torch.full((1,), block.attention_norm.eps),
            "ones": torch.ones(1, width),
            "scale": torch.diag(block.output_norm.weight),
            "shift": block.output_norm.bias,
        }
        if self.has_ffn:
            constants |= _ffn(block, centre)
        if block.bilinear is not None:
            constants["bilinear"] = matrices(block.bilinear)[1].T
        for name, constant in constants.items():
            self.register_buffer(name, constant.contiguous().float())

    def project(self, x_RD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (times 1 / sqrt(K): the level's constants undo that), k and v. Shape: (R, D) -> (H, R, K) each.

        Head by head: no transpose between the product and the attention.
        """
        return x_RD @ self.query, x_RD @ self.key, x_RD @ self.value

    def level_scale(self) -> float:
        """What the level's left factor is multiplied by here and is not in the model."""
        return 1.0 if self.is_separate else self.q_scale

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each row's fields to each other, or q's to all. Shape: (H, N, F, K) each -> (H, N, F of q, K)."""
        score = q @ k.transpose(2, 3)
        if not self.scores_are_bounded:
            return score.softmax(3) @ v
        # No score can overflow exp, so the maximum need not be found, and the sums are a product.
        unscaled = score.exp()
        sums = unscaled.flatten(0, 2) @ torch.ones(score.shape[3], v.shape[3])
        return (unscaled @ v) / sums.view(q.shape)

    def finish(self, x_RD: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer. Shape: x (R, D), attended (H, N, F, K) -> normalised x (R, D).

        What follows applies rescale(), or folds it.
        """
        centred_RD = x_RD @ self.centre
        for head_RK, out_KD in zip(attended.flatten(1, 2).unbind(0), self.out.unbind(0), strict=True):
            centred_RD = torch.addmm(centred_RD, head_RK, out_KD)  # a concatenation of heads would copy them
        first_RD = self.normalise(centred_RD)
        if not self.has_ffn:
            return first_RD
        hidden = torch.addmm(self.inner_bias, first_RD, self.inner).relu()
        return self.normalise(torch.addmm(self.outer_bias, hidden, self.outer) + first_RD @ self.skip)

    def rescale(self, normalised_RD: Tensor) -> Tensor:
        return torch.addmm(self.shift, normalised_RD, self.scale)

    def normalise(self, centred_RD: Tensor) -> Tensor:
        """Rows of mean 0 -> rows of mean 0 and variance 1."""
        variance_R1 = torch.addmm(self.eps, centred_RD * centred_RD, self.mean)
        # Spread by a product: dividing by one number a row is a loop over short rows again.
        spread_RD: Tensor = variance_R1.rsqrt() @ self.ones
        return centred_RD * spread_RD


class FoldedLast(nn.Module):
    """The last level's factors, from the encoder's normalised output. Shape: (NF, D) -> (NF, D) each."""

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


def _ffn(block: Block, centre: Tensor) -> dict[str, Tensor]:
    first, inner, outer = block.attention_norm, block.ffn[0], block.ffn[2]
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    return {
        "inner": first.weight[:, None] * inner.weight.T,
        "inner_bias": first.bias @ inner.weight.T + inner.bias,
        "skip": first.weight[:, None] * centre,
        "outer": outer.weight.T @ centre,
        "outer_bias": (first.bias + outer.bias) @ centre,
    }


def _by_head(weight: Tensor, heads: int) -> Tensor:
    """A linear layer's weight (out, in) as one product a head: (H, in, K)."""
    by_head: Tensor = weight.T.unflatten(1, (heads, -1)).transpose(0, 1)
    return by_head.contiguous()
