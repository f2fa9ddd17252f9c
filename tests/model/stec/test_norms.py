"""The norms of small numbers: their gradients, their running statistics, and levels whose interactions are constant."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.layers import Fields
from model.stec import fused
from model.stec.factorized import level_logit
from model.stec.norms import BatchNorm, EmbeddingNorm
from model.stec.stec import STEC, STECConfig
from tests.support.stec_models import batch, build, error, train_step

pytestmark = pytest.mark.numeric

PAIRS = torch.tensor([1, 2, 5])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["all", "some"])
def test_the_gradient_of_a_level_with_a_relative_eps_is_that_of_finite_differences(
    eps: float, pairs: Tensor | None
) -> None:
    torch.manual_seed(0)
    channels = 2 * (9 if pairs is None else 3)
    norm = BatchNorm(channels, eps, 0.5).double()
    weight = random(channels)
    assert torch.autograd.gradcheck(
        lambda left, right, weight: level_logit(left, right, norm, weight, pairs),
        (random(5, 3, 2), random(5, 3, 2), weight),
    )
    assert torch.autograd.gradcheck(norm, (random(5, channels),))


@pytest.mark.parametrize("kind", ["batch", "rms"])
def test_the_gradient_of_an_embedding_norm_is_that_of_finite_differences(kind: Any) -> None:
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(EmbeddingNorm(2, 1, 3, kind).double(), (random(5, 3, 3),))


# An absolute level_eps of 1e-12 is for embeddings without a norm: it is far below the rounding errors of products of
# size 1, which a constant pair of normalized fields has.
SMALL: list[dict[str, Any]] = [
    {"level_eps": 1e-12},
    *({"level_eps": 0.0, "level_eps_relative": 0.01, "embedding_norm": norm} for norm in ("none", "batch", "rms")),
    *({"layer_norm_eps": 5.0, "embedding_norm": norm} for norm in ("batch", "rms")),
]


@pytest.mark.parametrize("std", [1e-4, 1e-2])
@pytest.mark.parametrize("options", SMALL, ids=str)
def test_both_forms_agree_for_small_embeddings(std: float, options: dict[str, Any]) -> None:
    size = STECConfig(embedding=8, ffn=0, embedding_std=std, **options)
    expected, found = train_step(build(size, True), 257), train_step(build(size, False), 257)
    largest = max(t.abs().max().item() for name, t in expected.items() if name.startswith("gradient"))
    for name, difference in error(found, expected).items():
        scale = max(expected[name].abs().max().item(), largest * 1e-3)
        assert difference <= 1e-9 * scale, (name, difference, scale)


@pytest.mark.parametrize("std", [1e-4, 1e-2, 1.0])
def test_the_first_level_contributes_at_any_size_of_the_embeddings(std: float) -> None:
    """With torch's eps, its share of the logit vanishes."""
    shares = {}
    for name, options in {"torch": {}, "relative": {"level_eps": 0.0, "level_eps_relative": 0.01}}.items():
        model = build(STECConfig(embedding=8, embedding_std=std, **options), True)  # type: ignore[arg-type]
        ids, values, _ = batch(257)
        left, right = model.levels(model.embed(ids, values))[0]
        norm, _ = model.norms_and_weights()[0]
        shares[name] = (norm(model.in_head(left, right)) - norm.bias).std().item()
    assert shares["relative"] > 0.5
    assert (shares["torch"] > 0.5) == (std == 1.0)


@pytest.mark.skipif(not fused.is_available(), reason="the kernel was not built, or cannot run here")
@pytest.mark.parametrize("options", SMALL, ids=str)
def test_training_in_float32_gives_the_gradients_of_float64(options: dict[str, Any]) -> None:
    """The factorized form uses the kernel's functions in float32.

    A token in 0.1% of the rows is 30 standard deviations from the mean, and so are the rounding errors of the others.
    """
    size = STECConfig(embedding=8, ffn=0, embedding_std=1e-3, **options)
    single = build(size, False, dtype=torch.float32)
    double = copy.deepcopy(single).double()
    found, expected = train_step(single, 1024), train_step(double, 1024)
    for name, difference in error(found, expected).items():
        assert difference <= 5e-3 * expected[name].abs().max().item(), name


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_level_without_any_variance_contributes_only_its_shift(plain: bool, dtype: torch.dtype) -> None:
    size = STECConfig(embedding=8, blocks=1, ffn=0, level_eps=0.0, level_eps_relative=0.01)
    model = build(size, plain, dtype=dtype)
    head = model.head[0]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        for parameter in model.embedding.parameters():
            parameter.zero_()  # so all levels are zero
    for _ in range(2):
        found = train_step(model, 64)
        shifts = [(weight * norm.bias).sum() for norm, weight in model.norms_and_weights()]
        shift = torch.stack(shifts).sum() + head.bias
        torch.testing.assert_close(found["logits"], shift.expand(64).detach(), rtol=1e-5, atol=1e-5)
        assert all(t.isfinite().all() for t in found.values())
    ids, values, _ = batch(9)
    torch.testing.assert_close(model.eval()(ids, values.to(dtype)), shift.expand(9), rtol=1e-5, atol=1e-5)


def test_the_running_statistics_start_with_the_first_batch() -> None:
    torch.manual_seed(0)
    x = 1e-4 * torch.randn(40, 64, 6)
    norm, usual = BatchNorm(6, 1e-12), nn.BatchNorm1d(6)
    for step, rows in enumerate(x):
        norm(rows), usual(rows)
        assert norm.running_var is not None
        if step < 10:
            torch.testing.assert_close(norm.running_var, x[: step + 1].var(1).mean(0))
    assert norm.running_var is not None
    assert usual.running_var is not None
    assert norm.running_var.max() < 1.5e-8
    assert usual.running_var.min() > 1e-3


def test_an_rms_norm_gives_every_field_the_same_size_and_keeps_its_proportions() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 3, 4) * torch.tensor([1e-4, 1.0, 100.0])[:, None] + torch.tensor([0, 3, 0])[:, None]
    y = EmbeddingNorm(2, 1, 4, "rms")(x)
    torch.testing.assert_close(y.square().mean((0, 2)), torch.ones(3), rtol=1e-3, atol=0)
    torch.testing.assert_close(y / y[:1, :, :1], x / x[:1, :, :1])


def test_a_batch_norm_normalizes_each_dimension_but_keeps_the_direction_of_numeric_fields() -> None:
    torch.manual_seed(0)
    alpha = torch.tensor([0.01, -0.02, 0.1, 0.2])
    categorical, value = 1e-3 * torch.randn(100, 2, 4) + 0.01, torch.randn(100)
    x = torch.cat([categorical, (value[:, None] * alpha)[:, None]], 1)
    y = EmbeddingNorm(2, 1, 4, "batch")(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(y[:, :2].var(0, correction=0), torch.ones(2, 4), rtol=2e-3, atol=0)
    torch.testing.assert_close(y[:, 2] / y[:, 2, :1], (alpha / alpha[0]).expand(100, 4), rtol=1e-3, atol=0)
    torch.testing.assert_close(y[:, 2].var(0, correction=0).mean(), torch.tensor(1.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["batch", "rms"])
def test_the_size_of_the_embeddings_does_not_change_a_normalized_model(kind: Any) -> None:
    size = STECConfig(embedding=8, embedding_norm=kind)
    model = build(size, False)
    ids, values, _ = batch(64)
    expected = model(ids, values)
    with torch.no_grad():
        for parameter in model.embedding.parameters():
            parameter.mul_(100)
    torch.testing.assert_close(model(ids, values), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["batch", "rms"])
def test_an_embedding_norm_of_a_constant_field_amplifies_no_rounding_errors(kind: Any) -> None:
    x = torch.full((1000, 1, 4), 0.1) * torch.tensor([1.0, 3.0, -7.0, 0.0])
    x.requires_grad_()
    y = EmbeddingNorm(1, 0, 4, kind)(x)
    torch.manual_seed(0)
    (gradient,) = torch.autograd.grad((y * torch.randn(1000, 1, 4)).sum(), x)
    assert gradient.abs().max() < 1e4
    if kind == "batch":
        assert y.abs().max() < 1e-3


def test_a_batch_of_one_row_is_an_error() -> None:
    for norm, shape in ((BatchNorm(4, 1e-12), (1, 4)), (EmbeddingNorm(1, 0, 4, "batch"), (1, 1, 4))):
        with pytest.raises(ValueError, match="at least two rows"):
            norm(torch.ones(shape))


def test_the_defaults_are_the_norms_of_torch() -> None:
    model = STEC(Fields((5, 4), 1), STECConfig())
    assert model.embedding_norm is None
    assert {type(norm) for norm in model.norms} == {nn.BatchNorm1d}
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm1d)} == {1e-5}


def test_a_level_eps_of_zero_needs_a_relative_one() -> None:
    with pytest.raises(ValueError, match=r"level_eps = 0 with .* Set level_eps_relative = 0\.01"):
        STECConfig(level_eps=0.0)
    assert STECConfig(level_eps=0.0, level_eps_relative=0.1).level_eps == 0
