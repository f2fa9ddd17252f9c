"""STEC's attention and interaction. The attention scores are the pooled interaction (section 3.3).

Shape legend: B rows, F fields, D embedding width, H heads, K = D / H.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from model.stec import fused


def interaction(left_BFD: Tensor, right_BFD: Tensor) -> Tensor:
    """Return the product of every field's left factor and every field's right factor, before any pooling (Eq. 7-9).

    Splitting into heads and concatenating them again would not change any element. Shape: (B, F, F, D).
    """
    return left_BFD[:, :, None, :] * right_BFD[:, None, :, :]


def pairs_in_head(pairs: str, fields: int) -> Tensor | None:
    """Return the positions of the pairs that the head uses in a flattened F x F matrix, int64 (P), or None for all.

    Args:
        pairs: The model's option `pairs`.
        fields: F.

    Raises:
        ValueError: If there is no such pair.
    """
    if pairs == "full":
        return None
    if pairs == "upper" and fields < 2:
        raise ValueError('pairs = "upper" needs two fields. Set pairs = "full", or give the model more fields.')
    row, column = torch.triu_indices(fields, fields, offset=1 if pairs == "upper" else 0)
    position_P: Tensor = row * fields + column
    return position_P


def attend_to_interactions(
    q_BFD: Tensor, k_BFD: Tensor, v_BFD: Tensor, heads: int, divisor: float, allowed_FF: Tensor | None = None
) -> Tensor:
    """Return the attention of Eq. 5 and 6 as shown in Figure 2: pool the interaction in each head, apply the softmax,
    and use the result to weight v.

    Args:
        q_BFD: Queries.
        k_BFD: Keys.
        v_BFD: Values.
        heads: H.
        divisor: The divisor of the scores.
        allowed_FF: True where a field (row) may attend to another (column), or None for no restriction.
    """
    rows, fields, width = q_BFD.shape
    v_BFHK = v_BFD.view(rows, fields, heads, -1)
    weight_BFFH = attention_weights(q_BFD, k_BFD, heads, divisor, allowed_FF)
    return torch.einsum("bijh,bjhk->bihk", weight_BFFH, v_BFHK).reshape(rows, fields, width)


def attention_weights(
    q_BFD: Tensor, k_BFD: Tensor, heads: int, divisor: float, allowed_FF: Tensor | None = None
) -> Tensor:
    """Return how much each field attends to each field (Eq. 5). Shape: (B, F, F, H), summing to 1 over the second F."""
    rows, fields, _ = q_BFD.shape
    p_BFFHK = interaction(q_BFD, k_BFD).view(rows, fields, fields, heads, -1)
    score_BFFH = p_BFFHK.sum(-1) / divisor
    if allowed_FF is not None:
        score_BFFH = score_BFFH.masked_fill(~allowed_FF[:, :, None], -math.inf)
    return score_BFFH.softmax(2)


def attend_fused(
    q_BFD: Tensor, k_BFD: Tensor, v_BFD: Tensor, heads: int, divisor: float, allowed_FF: Tensor | None = None
) -> Tensor:
    """Return the same as attend_to_interactions(), without storing the interaction in memory."""
    if fused.can_train(q_BFD, k_BFD, v_BFD):
        return fused.attend(q_BFD, k_BFD, v_BFD, heads, divisor, allowed_FF)
    rows, fields, width = q_BFD.shape
    q, k, v = (t.view(rows, fields, heads, -1).transpose(1, 2) for t in (q_BFD, k_BFD, v_BFD))
    heads_BHFK = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed_FF, scale=1 / divisor)
    return heads_BHFK.transpose(1, 2).reshape(rows, fields, width)


def request_mask(is_context: Sequence[bool]) -> Tensor:
    """Return the mask of attention = "request": context fields attend to context fields, candidate fields to all.

    NOTE[DIFF] In the paper, every field attends to every field. Shape: F -> bool (F, F), row attends to column.
    """
    context_F = torch.tensor(is_context)
    return ~context_F[:, None] | context_F
