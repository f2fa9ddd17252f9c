"""Floating-point operations of one row's prediction, as the paper counts them (section 4.3, Fig. 3).

One multiply-add is one FLOP. Linear layers and matrix products count; element-wise products, pooling, softmax,
embeddings and norms do not. This is fvcore's convention, and it gives the paper's 41k for AFM. For STEC with F fields,
width D, FFN width M, N blocks and a linear head the result is

    N (4 F D^2  +  F^2 D  +  2 F D M)  +  2 F D^2  +  (N + 1) F^2 D
       q k v out   weights v  FFN        last q, k   head

The attention's scores are the pooled Hadamard product of q and k (Fig. 2a), so they do not count. F must be 2 or more:
the counter does not see a product in a sum over one field.
"""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(model: nn.Module, ids: Tensor, values: Tensor) -> int:
    """Return the FLOPs of one row, for the model's plain form if it has two forms.

    The model is left in its mode and form.

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
    return total // (2 * len(ids))  # the counter counts two for a multiply-add
