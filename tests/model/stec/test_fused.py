"""The C++ functions for training give the same results and gradients as torch."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import kernel
from model.stec import fused
from model.stec.attention import attend_fused, request_mask
from model.stec.factorized import batch_moments, level_logit, weighted_sum
from tests.support.examples import examples

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(not kernel.is_usable(), reason="the kernel was not built, or cannot run here"),
]

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def results(function: Function, inputs: Sequence[Tensor], *others: object) -> list[Tensor]:
    """Return the function's results, and the gradients of a random sum of them."""
    given_ = [t.clone().requires_grad_() for t in inputs]
    out = function(*given_, *others)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    torch.manual_seed(1)
    total = sum((o * torch.randn(o.shape, dtype=torch.float64)).sum() for o in outputs)
    return [o.detach() for o in outputs] + list(torch.autograd.grad(total, given_))  # type: ignore[arg-type]


def largest_difference(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest number in each tensor."""
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-6)).item() for a, b in zip(ours, exact, strict=True))


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Generate rows, fields, width and heads, including sizes that do not fill a vector register."""
    heads = draw(st.integers(1, 3))
    return draw(st.integers(2, 70)), draw(st.integers(1, 12)), heads * draw(st.integers(1, 9)), heads


@given(sizes(), st.integers(0, 99))
@settings(max_examples=examples(60), deadline=None)
def test_batch_statistics_and_weighted_sums_equal_those_of_torch_in_double_precision(
    size: tuple[int, int, int, int], seed: int
) -> None:
    rows, fields, width, _ = size
    torch.manual_seed(seed)
    left, right, a = (
        torch.randn(rows, fields, width),
        torch.randn(rows, fields, width),
        torch.randn(width, fields, fields),
    )
    exact = results(batch_moments, [left.double(), right.double()])
    assert largest_difference(results(fused.batch_moments, [left, right]), exact) < 1e-5
    exact = results(weighted_sum, [left.double(), right.double(), a.double()])
    assert largest_difference(results(fused.weighted_sum, [left, right, a]), exact) < 1e-5


@given(sizes(), st.booleans(), st.integers(0, 99))
@settings(max_examples=examples(60), deadline=None)
def test_attention_with_and_without_a_mask_equals_that_of_torch_in_double_precision(
    size: tuple[int, int, int, int], is_request: bool, seed: int
) -> None:
    rows, fields, width, heads = size
    torch.manual_seed(seed)
    inputs = [torch.randn(rows, fields, width) for _ in range(3)]
    allowed = request_mask([field <= fields // 2 for field in range(fields)]) if is_request else None
    exact = results(attend_fused, [t.double() for t in inputs], heads, 1.7, allowed)
    assert largest_difference(results(fused.attend, inputs, heads, 1.7, allowed), exact) < 2e-5


def test_the_variance_of_a_nearly_constant_field_is_accurate() -> None:
    left, right = 300 + 1e-2 * torch.randn(999, 2, 8), 1 + 1e-4 * torch.randn(999, 2, 8)
    (_, ours, *_), (_, exact, *_) = (
        results(f, [left.to(t), right.to(t)])
        for f, t in ((fused.batch_moments, torch.float32), (batch_moments, torch.float64))
    )
    assert torch.allclose(ours, exact, rtol=1e-6)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_rows_are_split_between_the_threads_of_torch() -> None:
    torch.manual_seed(0)
    rows = [torch.randn(3 * fused.MIN_ROWS_PER_THREAD + 5, 4, 8) for _ in range(3)]
    exact = results(batch_moments, [t.double() for t in rows[:2]])
    assert largest_difference(results(fused.batch_moments, rows[:2]), exact) < 1e-5
    exact = results(attend_fused, [t.double() for t in rows], 2, 2.0, None)
    assert largest_difference(results(fused.attend, rows, 2, 2.0, None), exact) < 1e-5


def test_a_level_has_the_same_gradients_with_and_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    left, right, weight = torch.randn(50, 5, 6), torch.randn(50, 5, 6), torch.randn(150)

    def level() -> list[Tensor]:
        norm = nn.BatchNorm1d(150)
        trained = results(lambda a, b, w: level_logit(a, b, norm, w), [left, right, weight])
        return [*trained, norm.running_mean, norm.running_var]  # type: ignore[list-item]

    with_kernel = level()
    monkeypatch.setattr(fused, "can_train", lambda *tensors: False)
    assert largest_difference(with_kernel, level()) < 1e-5


def test_nan_stays_nan() -> None:
    rows = torch.full((3, 2, 4), float("nan"))
    assert all(t.isnan().all() for t in results(fused.attend, [rows, rows, torch.ones(3, 2, 4)], 1, 1.0, None)[:3])


def test_torch_is_used_in_double_precision_without_gradients_and_on_other_devices() -> None:
    x = torch.randn(3, 2, 4, requires_grad=True)
    assert fused.can_train(x)
    assert not fused.can_train(x.double())
    assert not fused.can_train(x.to("meta"))
    assert not fused.can_train(x.detach())
    with torch.no_grad():
        assert not fused.can_train(x)
