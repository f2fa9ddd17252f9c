"""Packing a trained STEC with a linear head into the numbers that kernel/weights.h reads, in the same order.

The kernel computes STEC with its default options, and without an FFN. It does not need to support options that are
folded into constants here: pairs and levels that the head does not use, the scale of the attention, and an identity
matrix.

Everything that is constant in serving is folded in float64 and rounded once:

- The batch norms and the head are folded as in export/graphs/level.py.
- The scale and shift of a layer norm are folded into the layers after it, and its centering into the layers before it,
  so that only a division by the root mean square remains.
- The bias of the values is folded into the bias of the residual, because attention weights sum to 1.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.graphs.block import blocks_of, matrices
from export.graphs.level import fold_levels, linear_head
from model.stec.stec import STEC, Block


def option_without_kernel(model: STEC) -> str | None:
    """Return the option of a model with a linear head that the kernel does not support, as `key = value`, or None."""
    return None if all(block.bilinear is None for block in blocks_of(model)) else 'interaction = "separate"'


@torch.no_grad()
def pack(model: STEC, order: Sequence[int]) -> Tensor:
    """Return all weights except the embeddings, float32 (P).

    Args:
        model: The model.
        order: The model's position of each field in serving order.

    Raises:
        ValueError: If the model has an option that the kernel does not support.
    """
    if option := option_without_kernel(model):
        raise ValueError(f"the kernel does not support {option}. Serve the model with the graph of standard operators.")
    exact = copy.deepcopy(model).double()
    width = exact.embedding.table.embedding_dim
    scale, shift = torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    levels = fold_levels(exact, order)
    parts: list[Tensor] = []
    for block, level in zip(blocks_of(exact), levels[:-1], strict=True):
        parts += [*pack_block(block, scale, shift), level.a_DFF * block.score_divisor]
        scale, shift = block.output_norm.weight, block.output_norm.bias
    both = torch.cat(matrices(exact.last))
    bias = linear_head(exact).bias + sum(level.constant for level in levels)
    parts += [(both * scale).T, both @ shift, levels[-1].a_DFF, bias]
    return torch.cat([part.flatten() for part in parts]).float()


def pack_block(block: Block, scale: Tensor, shift: Tensor) -> list[Tensor]:
    """Return a block's weights, including the scale and shift of the layer norm before it."""
    width = len(scale)
    center = torch.eye(width, dtype=torch.float64) - 1 / width
    (query, key), value = matrices(block.project), block.value.weight
    query = query / block.score_divisor
    residual_bias = center @ (shift + block.out.weight @ (value @ shift))
    norms = [block.attention_norm, *([block.ffn_norm] if block.has_ffn else [])]
    return [
        torch.cat([query * scale, key * scale, value * scale, center * scale]).T,
        torch.cat([query @ shift, key @ shift, torch.zeros_like(shift), residual_bias]),
        (center @ block.out.weight).T,
        *(pack_ffn(block, center) if block.has_ffn else []),
        torch.tensor([norm.eps for norm in norms], dtype=torch.float64),
    ]


def pack_ffn(block: Block, center: Tensor) -> list[Tensor]:
    """Return the weights of a block's FFN, including the scale and shift of the layer norm before it."""
    norm, inner, outer = block.attention_norm, block.ffn[0], block.ffn[2]
    assert isinstance(inner, nn.Linear)
    assert isinstance(outer, nn.Linear)
    return [
        (inner.weight * norm.weight).T,
        inner.weight @ norm.bias + inner.bias,
        torch.cat([center @ outer.weight, center * norm.weight], 1).T,
        center @ (norm.bias + outer.bias),
    ]
