"""Training functions on pairs of fields in C++ (kernel/training.cpp), several times faster than torch on a CPU.

Each is an autograd function with an explicit gradient, and matches its torch form up to float32 rounding. The torch
form is used if there is no kernel, on other devices, with other precisions and under a tracer.

Shape legend: B rows, F fields, D width.
"""

import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import kernel

T = TypeVar("T")

MIN_ROWS_PER_THREAD = 512

_POINTERS_AND_INTEGERS = {
    "stec_moments": "PPPIIIPP",
    "stec_logits": "PPPIIIP",
    "stec_level_gradient": "PPPPPPIIIPP",
    "stec_attend": "PPPPFIIIIP",
    "stec_attention_gradient": "PPPPFPIIIIPPP",
}
_C = {"P": ctypes.c_void_p, "I": ctypes.c_int64, "F": ctypes.c_float}
_pool = ThreadPoolExecutor(thread_name_prefix="fused")


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Return the kernel's library, or None if it is not built or this processor cannot run it."""
    try:
        library = ctypes.CDLL(str(kernel.built()))
    except (kernel.NoKernel, OSError):
        return None
    library.stec_processor_can.restype = ctypes.c_bool
    if not library.stec_processor_can():
        return None
    for name, arguments in _POINTERS_AND_INTEGERS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [_C[letter] for letter in arguments], ctypes.c_bool
    return library


def is_available() -> bool:
    """Return whether the kernel is built and this processor can run it."""
    return load_library() is not None


def can_train(*tensors: Tensor) -> bool:
    """Return whether the kernel supports these tensors: plain float32 on the CPU, at least one with a gradient."""
    plain = all(type(t) is Tensor and t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return plain and torch.is_grad_enabled() and any(t.requires_grad for t in tensors) and is_available()


def batch_moments(left_BFD: Tensor, right_BFD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as batch_moments() in model/stec/factorized.py."""
    mean_DFF, variance_DFF = BatchMoments.apply(left_BFD, right_BFD)  # type: ignore[no-untyped-call]
    return mean_DFF, variance_DFF


def weighted_sum(left_BFD: Tensor, right_BFD: Tensor, a_DFF: Tensor) -> Tensor:
    """Return the same as weighted_sum() in model/stec/factorized.py."""
    logit_B: Tensor = WeightedSum.apply(left_BFD, right_BFD, a_DFF)  # type: ignore[no-untyped-call]
    return logit_B


def attend(
    q_BFD: Tensor, k_BFD: Tensor, v_BFD: Tensor, heads: int, divisor: float, allowed_FF: Tensor | None
) -> Tensor:
    """Return the same as attend_fused() in model/stec/attention.py."""
    out_BFD: Tensor = FusedAttention.apply(q_BFD, k_BFD, v_BFD, heads, divisor, allowed_FF)  # type: ignore[no-untyped-call]
    return out_BFD


class BatchMoments(torch.autograd.Function):
    """Mean and biased variance of left_i * right_j over the batch."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left, right = left.contiguous(), right.contiguous()
        first, second = sum_products(left, right, None, squares=True)
        mean = first / len(left)
        ctx.save_for_backward(left, right, mean)
        return mean, (second / len(left) - mean.square()).clamp_min(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> tuple[Tensor, Tensor]:
        left, right, mean = ctx.saved_tensors
        return pair_gradient(left, right, None, by_mean / len(left), 2 * by_variance / len(left), mean)


class WeightedSum(torch.autograd.Function):
    """The sum of left_i * a_ij * right_j over i, j and D."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, a: Tensor) -> Tensor:
        left, right = left.contiguous(), right.contiguous()
        ctx.save_for_backward(left, right, a)
        logit, single = left.new_empty(len(left)), a.float().contiguous()

        def step(part: slice) -> None:
            call("stec_logits", left[part], right[part], single, *sizes_of(left, part), logit[part])

        in_parallel(len(left), step)
        return logit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, right, a = ctx.saved_tensors
        scale = by_logit.contiguous()
        by_a, _ = sum_products(left, right, scale, squares=False)
        return *pair_gradient(left, right, scale, a, None, None), by_a.to(a.dtype)


class FusedAttention(torch.autograd.Function):
    """Multi-head attention in which each field attends to the fields that the mask allows."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, divisor: float, allowed: Tensor | None
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        ctx.save_for_backward(q, k, v, allowed)
        ctx.heads, ctx.divisor = heads, divisor
        out = torch.empty_like(q)

        def step(part: slice) -> None:
            rows = (t[part] for t in (q, k, v))
            call("stec_attend", *rows, allowed, divisor, *sizes_of(q, part), heads, out[part])

        in_parallel(len(q), step)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed = ctx.saved_tensors
        by_out, gradients = by_out.contiguous(), [torch.empty_like(q) for _ in range(3)]

        def step(part: slice) -> None:
            rows, sizes = (t[part] for t in (q, k, v)), (*sizes_of(q, part), ctx.heads)
            to = (gradient[part] for gradient in gradients)
            call("stec_attention_gradient", *rows, allowed, ctx.divisor, by_out[part], *sizes, *to)

        in_parallel(len(q), step)
        return *gradients, None, None, None


def sum_products(left: Tensor, right: Tensor, scale: Tensor | None, squares: bool) -> tuple[Tensor, Tensor]:
    """Return the batch sums of scale * left_i * right_j and, if `squares`, of its square, float64 (D, F, F) each."""
    _, fields, width = left.shape

    def step(part: slice) -> Tensor:
        sums = torch.zeros(2, width, fields, fields, dtype=torch.float64)
        second = sums[1] if squares else None
        scaled = None if scale is None else scale[part]
        call("stec_moments", left[part], right[part], scaled, *sizes_of(left, part), sums[0], second)
        return sums

    first, second = torch.stack(in_parallel(len(left), step)).sum(0)
    return first, second


def pair_gradient(
    left: Tensor, right: Tensor, scale: Tensor | None, a: Tensor, slope: Tensor | None, mean: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of left and right.

    The gradient of a product left_i * right_j is scale * a + slope * (left_i * right_j - mean).

    Args:
        left: (B, F, D).
        right: (B, F, D).
        scale: (B), or None for 1.
        a: (D, F, F).
        slope: (D, F, F), or None for 0.
        mean: (D, F, F), or None for 0.
    """
    by_left, by_right = torch.empty_like(left), torch.empty_like(right)
    per_pair = [None if t is None else t.float().contiguous() for t in (a, slope, mean)]

    def step(part: slice) -> None:
        scaled = None if scale is None else scale[part]
        sizes = sizes_of(left, part)
        call("stec_level_gradient", left[part], right[part], scaled, *per_pair, *sizes, by_left[part], by_right[part])

    in_parallel(len(left), step)
    return by_left, by_right


def sizes_of(rows: Tensor, part: slice) -> tuple[int, int, int]:
    """Return the number of rows, F and D of a part."""
    return part.stop - part.start, rows.shape[1], rows.shape[2]


def call(name: str, *arguments: Tensor | float | None) -> None:
    """Call a kernel function. ctypes releases the GIL during the call.

    Raises:
        MemoryError: If the kernel runs out of memory.
    """
    library = load_library()
    assert library is not None
    if not getattr(library, name)(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)):
        raise MemoryError(f"{name}: out of memory")


def in_parallel(rows: int, step: Callable[[slice], T]) -> list[T]:
    """Split the rows into one part per torch thread, run a step on each part in parallel, and return the results."""
    parts = max(1, min(torch.get_num_threads(), rows // MIN_ROWS_PER_THREAD))
    slices = [slice(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)]
    return [step(slices[0])] if parts == 1 else list(_pool.map(step, slices))
