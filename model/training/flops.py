"""Floating-point operations of one row's prediction, as the paper counts them (section 4.3, Fig. 3).

One multiply-add is one FLOP. Counted are linear layers and matrix products; element-wise products,
pooling, softmax, embeddings and norms are free. This is fvcore's convention, and it gives the paper's 41k
for AFM. For STEC of F fields, width D, FFN width M and N blocks with a linear head it comes to

    N (4 F D^2  +  F^2 D  +  2 F D M)  +  2 F D^2  +  (N + 1) F^2 D
       q k v out   weights v  FFN        last q, k   head

The attention's scores are the pooled Hadamard product of q and k (Fig. 2a), hence free; F is 2 or more, for
the counter sees no product in a sum over one field.
"""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(model: nn.Module, ids: Tensor, values: Tensor) -> int:
    """Per row, of the model's plain form where it has two. Shape: ids int64 (B, categorical), values (B, numeric).

    Leaves the model in the mode and form in which it was.
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
    return total // (2 * len(ids))  # the counter has two for a multiply-add
