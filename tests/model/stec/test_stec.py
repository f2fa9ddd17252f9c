"""The two forms of STEC are the same model."""

import copy
import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from contract.schema import Attention
from model.stec.attention import attend_fused, attend_to_interactions, attention_weights, interaction, request_mask
from model.stec.stec import STECConfig
from tests.support.examples import examples
from tests.support.rounding import UNIT_ROUNDOFF, relative_errors
from tests.support.stec_models import IS_CONTEXT, NUMERIC, SIZES, batch, build, error, train_step

pytestmark = pytest.mark.numeric


@settings(max_examples=examples(15), deadline=None)
@given(
    blocks=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    rows=st.sampled_from([2, 3, 257]),
    std=st.sampled_from([0.01, 0.3, 1.0, 3.0]),
    seed=st.integers(0, 99),
    attention=st.sampled_from(["full", "request"]),
)
def test_both_forms_agree_in_float64(
    blocks: int, heads: int, rows: int, std: float, seed: int, attention: Attention
) -> None:
    size = STECConfig(embedding=8, blocks=blocks, heads=heads, ffn=16, embedding_std=std, attention=attention)
    plain, fast = build(size, True, seed), build(size, False, seed)
    expected, found = train_step(plain, rows), train_step(fast, rows)
    # A gradient that is zero except for rounding errors is compared with the largest gradient.
    largest = max(t.abs().max().item() for name, t in expected.items() if name.startswith("gradient"))
    for name, difference in error(found, expected).items():
        scale = max(expected[name].abs().max().item(), largest * 1e-3)
        assert difference <= 1e-9 * scale, (name, difference, scale)


@pytest.mark.parametrize(
    ("rows", "seeds", "std"),
    [
        *((2, 8, std) for std in (0.01, 0.1, 0.3, 1.0, 3.0)),
        (4096, 1, 1.0),
        *(pytest.param(4096, 1, std, marks=pytest.mark.full) for std in (0.01, 0.1, 0.3, 3.0)),
    ],
)
def test_the_factorized_form_is_as_accurate_in_float32_as_the_plain_one(std: float, rows: int, seeds: int) -> None:
    """docs/decisions/0012-bounds-on-rounding-errors.md derives the bound and measures it on every instruction set.

    Errors are root mean squares over the seeds. The factorized form may have the plain form's error times the growth
    of errors in a sum. Where the plain form's error is smaller than the error from rounding the terms of its batch
    norms, the latter counts: on equal rows the plain form is exact, because their rounding errors cancel.
    """
    size = STECConfig(embedding=16, blocks=2, heads=2, embedding_std=std)
    found: dict[str, float] = defaultdict(float)  # sums of squared errors, by the result's name
    allowed: dict[str, float] = defaultdict(float)
    for seed in range(seeds):
        model = build(size, True, seed, torch.float32)
        for name, module in [*model.named_modules()]:
            # Rounding that moves a unit across ReLU's corner changes a gradient by that row's whole share of it.
            if isinstance(module, nn.ReLU):
                model.set_submodule(name, nn.Softplus())
        exact, rounded = copy.deepcopy(model).double(), copy.deepcopy(model).double()
        for norm in rounded.norms:
            norm.register_forward_hook(round_normalized)
        reference = train_step(exact, rows)
        cost = error(train_step(rounded, rows), reference)
        plain = error(train_step(copy.deepcopy(model), rows), reference)
        model.plain = False
        factorized = error(train_step(model, rows), reference)
        for name, exact_result in reference.items():
            half_ulp = UNIT_ROUNDOFF * exact_result.abs().max().item()
            found[name] += factorized[name] ** 2
            allowed[name] += max(plain[name], cost[name], half_ulp) ** 2
    # Summing n terms of random signs one after the other causes sqrt(n / 2) times the error of rounding each term.
    growth = math.sqrt((len(SIZES) + NUMERIC) ** 2 * size.embedding / 2)
    ratios = {name: math.sqrt(found[name] / allowed[name]) for name in allowed}
    worst = max(ratios, key=ratios.__getitem__)
    assert ratios[worst] <= growth, (worst, ratios[worst], growth)


def round_normalized(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Return a float64 batch norm's output as if p - mean(p) had been computed from float32 terms.

    Each p then carries a relative error of up to one unit roundoff, and so does each gradient in the backward pass.
    """
    assert isinstance(norm, nn.BatchNorm1d)
    p = inputs[0].detach()
    inverse_std = (p.var(0, correction=0) + norm.eps).rsqrt()
    output = output + norm.weight * inverse_std * p * relative_errors(p)
    output.register_hook(lambda gradient: gradient * (1 + relative_errors(gradient)))
    return output


def test_both_forms_share_a_state_dict_and_agree_in_evaluation() -> None:
    size = STECConfig(embedding=8, blocks=2, heads=2)
    plain, fast = build(size, True), build(size, False, seed=5)
    train_step(plain, 64)
    fast.load_state_dict(plain.state_dict())
    ids, values, _ = batch(9)
    torch.testing.assert_close(fast.eval()(ids, values), plain.eval()(ids, values), rtol=1e-9, atol=1e-12)


def test_training_on_a_batch_of_one_row_is_an_error_in_both_forms() -> None:
    for plain in (True, False):
        with pytest.raises(ValueError, match=r"two rows|more than 1 value"):
            train_step(build(STECConfig(embedding=8), plain), 1)


def test_attention_pooled_from_the_interaction_is_scaled_dot_product_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 5, 8, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(attend_to_interactions(q, k, v, 4, 3.0), attend_fused(q, k, v, 4, 3.0))


def test_the_interaction_is_not_symmetric() -> None:
    q, k = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    p = interaction(q, k)
    torch.testing.assert_close(p[0, 0, 1], q[0, 0] * k[0, 1])
    torch.testing.assert_close(p[0, 1, 0], q[0, 1] * k[0, 0])


def test_an_mlp_head_trains_in_the_plain_form() -> None:
    model = build(STECConfig(embedding=8, mlp=(16, 8), dropout=0.1), plain=False)
    assert model.plain
    found = train_step(model, 32)
    assert found["logits"].shape == (32,)
    assert [len(p) for name, p in model.head.named_parameters() if name.endswith("weight")] == [16, 8, 1]


def test_every_level_is_an_input_of_the_head() -> None:
    """N blocks give N + 1 levels of F * F * D numbers each (Eq. 11)."""
    model = build(STECConfig(embedding=8, blocks=3), plain=True)
    fields = len(SIZES) + NUMERIC
    head = model.head[0]
    assert isinstance(head, nn.Linear)
    assert head.in_features == 4 * fields * fields * 8


def test_a_row_has_the_same_logit_in_any_batch() -> None:
    model = build(STECConfig(embedding=8), plain=False)
    train_step(model, 64)
    ids, values, _ = batch(20)
    model.eval()
    torch.testing.assert_close(model(ids, values)[7:8], model(ids[7:8], values[7:8]))


def test_a_number_scales_the_vector_of_its_field() -> None:
    model = build(STECConfig(embedding=8), plain=True)
    ids, values, _ = batch(2)
    x = model.embedding(ids, values)
    torch.testing.assert_close(x[0, len(SIZES)], values[0, 0] * model.embedding.alpha[0])
    torch.testing.assert_close(x[0, 1], model.embedding.table.weight[SIZES[0] + ids[0, 1]])


def test_with_request_attention_no_context_row_depends_on_a_candidate_field() -> None:
    ids, values, _ = batch(6)
    context = torch.tensor(IS_CONTEXT)
    other_ids, other_values = ids.clone(), values.clone()
    other_ids[:, ~context[: len(SIZES)]] = 1
    other_values[:, ~context[len(SIZES) :]] = 7.0
    cases: list[tuple[Attention, bool]] = [("request", True), ("full", False)]
    for attention, is_alike in cases:
        model = build(STECConfig(embedding=8, blocks=2, attention=attention), plain=False)
        a, b = (model.levels(model.embedding(i, v))[-1] for i, v in ((ids, values), (other_ids, other_values)))
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x[:, context], y[:, context]) == is_alike
            assert not torch.equal(x[:, ~context], y[:, ~context])


def test_attention_weights_sum_to_one_over_the_allowed_fields() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(3, 7, 8), torch.randn(3, 7, 8)
    allowed = request_mask(IS_CONTEXT)
    weights = attention_weights(q, k, 2, 2.0, allowed)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 7, 2))
    assert (weights[:, ~allowed] == 0).all()
    assert allowed[1].all()
    assert allowed[0].tolist() == list(IS_CONTEXT)
