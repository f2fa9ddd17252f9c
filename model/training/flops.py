"""Floating-point operations per prediction of a row, counted as in the paper (section 4.3, Fig. 3).

One multiply-add is one FLOP. Linear layers and matrix products are counted. Element-wise products, pooling, softmax,
embeddings and norms are not. This is fvcore's convention, and it gives the paper's 41k for AFM. For STEC with F fields,
width D, FFN width M, N blocks and a linear head, the result is

    N (4 F D^2  +  F^2 D  +  2 F D M)  +  2 F D^2  +  (N + 1) F^2 D
       q k v out   weights v  FFN        last q, k   head

The attention scores are the pooled Hadamard product of q and k (Fig. 2a), so they are not counted. F must be at least
2, because the counter does not detect a product in a sum over a single field.
"""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(model: nn.Module, ids: Tensor, values: Tensor) -> int:
    """Return the FLOPs per row. If the model has two forms, the plain form is counted.

    The model's mode and form are restored afterwards.

    Args:
        model: The model.
        ids: int64 (B, categorical).
        values: (B, numeric).
    """
    was_training, was_plain = model.training, getattr(model, "plain", None)
    model.eval()
    if was_plain is not None:
        model.plain = True  # type: ignore[assignment]
    try:
        # A fused attention kernel would hide its matrix products from the counter.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(ids, values)
    finally:
        model.train(was_training)
        if was_plain is not None:
            model.plain = was_plain
    total: int = counter.get_total_flops()
    return total // (2 * len(ids))  # the counter counts a multiply-add as two operations
