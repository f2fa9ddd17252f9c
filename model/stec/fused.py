"""Training's work on pairs of fields in C++ (kernel/training.cpp), several times as fast on a CPU as torch's own.

Each function is a step of autograd with its gradient written out, and equals its torch form up to the rounding of
float32. Without the kernel, on another device, in another precision or under a tracer, the torch form runs.

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

LEAST_ROWS = 512  # that are worth a thread

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
def _library() -> ctypes.CDLL | None:
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


def is_there() -> bool:
    """Whether the kernel was built and this processor can run it."""
    return _library() is not None


def can_train(*tensors: Tensor) -> bool:
    """Whether the kernel is there and takes them: plain float32 tensors on the CPU, of which one needs a gradient."""
    plain = all(type(t) is Tensor and t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return plain and torch.is_grad_enabled() and any(t.requires_grad for t in tensors) and is_there()


def batch_moments(left_BFD: Tensor, right_BFD: Tensor) -> tuple[Tensor, Tensor]:
    """model/stec/factorized.py's."""
    mean_DFF, variance_DFF = _BatchMoments.apply(left_BFD, right_BFD)  # type: ignore[no-untyped-call]
    return mean_DFF, variance_DFF


def weighted_sum(left_BFD: Tensor, right_BFD: Tensor, a_DFF: Tensor) -> Tensor:
    """model/stec/factorized.py's."""
    logit_B: Tensor = _WeightedSum.apply(left_BFD, right_BFD, a_DFF)  # type: ignore[no-untyped-call]
    return logit_B


def attend(
    q_BFD: Tensor, k_BFD: Tensor, v_BFD: Tensor, heads: int, divisor: float, allowed_FF: Tensor | None
) -> Tensor:
    """model/stec/attention.py's attend_fused()."""
    out_BFD: Tensor = _Attention.apply(q_BFD, k_BFD, v_BFD, heads, divisor, allowed_FF)  # type: ignore[no-untyped-call]
    return out_BFD


class _BatchMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        left, right = left.contiguous(), right.contiguous()
        first, second = _moments(left, right, None, squares=True)
        mean = first / len(left)
        ctx.save_for_backward(left, right, mean)
        return mean, (second / len(left) - mean.square()).clamp_min(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> tuple[Tensor, Tensor]:
        left, right, mean = ctx.saved_tensors
        return _gradient(left, right, None, by_mean / len(left), 2 * by_variance / len(left), mean)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, a: Tensor) -> Tensor:
        left, right = left.contiguous(), right.contiguous()
        ctx.save_for_backward(left, right, a)
        logit, single = left.new_empty(len(left)), a.float().contiguous()

        def step(part: slice) -> None:
            _call("stec_logits", left[part], right[part], single, *_sizes(left, part), logit[part])

        _each_part(len(left), step)
        return logit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left, right, a = ctx.saved_tensors
        scale = by_logit.contiguous()
        by_a, _ = _moments(left, right, scale, squares=False)
        return *_gradient(left, right, scale, a, None, None), by_a.to(a.dtype)


class _Attention(torch.autograd.Function):
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
            _call("stec_attend", *rows, allowed, divisor, *_sizes(q, part), heads, out[part])

        _each_part(len(q), step)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed = ctx.saved_tensors
        by_out, gradients = by_out.contiguous(), [torch.empty_like(q) for _ in range(3)]

        def step(part: slice) -> None:
            rows, sizes = (t[part] for t in (q, k, v)), (*_sizes(q, part), ctx.heads)
            to = (gradient[part] for gradient in gradients)
            _call("stec_attention_gradient", *rows, allowed, ctx.divisor, by_out[part], *sizes, *to)

        _each_part(len(q), step)
        return *gradients, None, None, None


def _moments(left: Tensor, right: Tensor, scale: Tensor | None, squares: bool) -> tuple[Tensor, Tensor]:
    """Sums over the batch, float64 (D, F, F): of scale * left_i * right_j, and of its square when asked for."""
    _, fields, width = left.shape

    def step(part: slice) -> Tensor:
        sums = torch.zeros(2, width, fields, fields, dtype=torch.float64)
        second = sums[1] if squares else None
        scaled = None if scale is None else scale[part]
        _call("stec_moments", left[part], right[part], scaled, *_sizes(left, part), sums[0], second)
        return sums

    first, second = torch.stack(_each_part(len(left), step)).sum(0)
    return first, second


def _gradient(
    left: Tensor, right: Tensor, scale: Tensor | None, a: Tensor, slope: Tensor | None, mean: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of what the pairs' numbers depend on through t = scale * a + slope * (left_i * right_j - mean)."""
    by_left, by_right = torch.empty_like(left), torch.empty_like(right)
    of_pairs = [None if t is None else t.float().contiguous() for t in (a, slope, mean)]

    def step(part: slice) -> None:
        scaled = None if scale is None else scale[part]
        sizes = _sizes(left, part)
        _call("stec_level_gradient", left[part], right[part], scaled, *of_pairs, *sizes, by_left[part], by_right[part])

    _each_part(len(left), step)
    return by_left, by_right


def _sizes(rows: Tensor, part: slice) -> tuple[int, int, int]:
    return part.stop - part.start, rows.shape[1], rows.shape[2]


def _call(name: str, *arguments: Tensor | float | None) -> None:
    """ctypes lets go of the interpreter's lock meanwhile."""
    library = _library()
    assert library is not None
    if not getattr(library, name)(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)):
        raise MemoryError(f"{name}: out of memory")


def _each_part(rows: int, step: Callable[[slice], T]) -> list[T]:
    """A part of the rows for each of torch's threads."""
    parts = max(1, min(torch.get_num_threads(), rows // LEAST_ROWS))
    slices = [slice(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)]
    return [step(slices[0])] if parts == 1 else list(_pool.map(step, slices))
