"""Every combination of the model's options computes what docs/decisions/0008 defines, in both forms."""

from typing import Any

import msgspec
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from model.layers import Fields
from model.stec.stec import STEC, Bilinear, STECConfig, cost_note
from tests.support.examples import examples
from tests.support.reference.stec import slow_logits
from tests.support.stec_models import batch, build, error, models, train_step

pytestmark = pytest.mark.numeric

HEADS = {
    "mlp": st.sampled_from([(), (), (5,), (6, 4)]),
    "mlp_batch_norm": st.booleans(),
}


@settings(max_examples=examples(25), deadline=None)
@given(size=models(**HEADS), rows=st.sampled_from([2, 5]), seed=st.integers(0, 99))
def test_the_plain_form_equals_loops_over_rows_pairs_heads_and_dimensions(
    size: STECConfig, rows: int, seed: int
) -> None:
    size = msgspec.structs.replace(size, embedding=4, ffn=min(size.ffn, 5), embedding_std=1.0)
    torch.manual_seed(seed)
    model = STEC(Fields((5, 4), 1, (True, False, True)), size, plain=True).double()
    ids, values = torch.randint(4, (rows, 2)), torch.randn(rows, 1).double()
    expected = slow_logits(model, size, model.embedding(ids, values).tolist())
    torch.testing.assert_close(model(ids, values), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@settings(max_examples=examples(40), deadline=None)
@given(
    size=models(embedding_std=st.sampled_from([0.01, 0.3, 1.0, 3.0])),
    rows=st.sampled_from([2, 3, 257]),
    seed=st.integers(0, 99),
)
def test_both_forms_agree_in_logits_gradients_and_running_statistics(size: STECConfig, rows: int, seed: int) -> None:
    # Two normalized rows are x and -x, so all products in the first level are constant.
    assume(rows > 2 or size.embedding_norm != "batch")
    plain, fast = build(size, True, seed), build(size, False, seed)
    assert not fast.plain
    expected, found = train_step(plain, rows), train_step(fast, rows)
    assert expected.keys() == found.keys()
    # A gradient that is zero except for rounding errors is compared with the largest gradient.
    largest = max(t.abs().max().item() for name, t in expected.items() if name.startswith("gradient"))
    for name, difference in error(found, expected).items():
        scale = max(expected[name].abs().max().item(), largest * 1e-3)
        assert difference <= 1e-9 * scale, (name, difference, scale)


@settings(max_examples=examples(25), deadline=None)
@given(size=models(**HEADS), seed=st.integers(0, 99))
def test_every_parameter_is_trained(size: STECConfig, seed: int) -> None:
    """Every parameter has a gradient that is larger than rounding errors."""
    gradients = {n: g for n, g in train_step(build(size, False, seed), 64).items() if n.startswith("gradient")}
    largest = max(g.abs().max().item() for g in gradients.values())
    assert {n for n, g in gradients.items() if g.abs().max().item() <= 1e-12 * largest} == set()


@settings(max_examples=examples(15), deadline=None)
@given(size=models(**HEADS), plain=st.booleans())
def test_a_row_has_the_same_logit_in_any_batch_and_in_the_other_form(size: STECConfig, plain: bool) -> None:
    model, other = build(size, plain), build(size, not plain, seed=5)
    train_step(model, 64)
    other.load_state_dict(model.state_dict())
    ids, values, _ = batch(20)
    model.eval()
    logits = model(ids, values)
    assert logits.shape == (20,)
    torch.testing.assert_close(logits[7:8], model(ids[7:8], values[7:8]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(other.eval()(ids, values), logits, rtol=1e-9, atol=1e-12)


# Sums of absolute values with seed 7, recorded before the options existed.
INITIAL = {
    "embedding.alpha": 0.134176,
    "embedding.table.weight": 1.822907,
    "blocks.0.project.query.weight": 54.624636,
    "blocks.0.project.key.weight": 49.247619,
    "blocks.0.value.weight": 46.667789,
    "blocks.0.out.weight": 51.066993,
    "blocks.0.attention_norm.weight": 16.0,
    "blocks.0.attention_norm.bias": 0.0,
    "blocks.0.ffn.0.weight": 128.178230,
    "blocks.0.ffn.0.bias": 0.0,
    "blocks.0.ffn.2.weight": 132.709541,
    "blocks.0.ffn.2.bias": 0.0,
    "blocks.0.ffn_norm.weight": 16.0,
    "blocks.0.ffn_norm.bias": 0.0,
    "last.query.weight": 47.562158,
    "last.key.weight": 48.579143,
    "norms.0.weight": 256.0,
    "norms.0.bias": 0.0,
    "norms.2.weight": 256.0,
    "head.0.weight": 31.226495,
    "head.0.bias": 0.0,
}
LOGITS = {
    "training": [0.907695, 0.500575, 0.520097, -0.169758, -2.357497, 0.598888],
    "evaluation": [0.663388, -0.095589, -0.218045, 1.032146, -1.053042, 0.559764],
}


def test_without_options_the_model_equals_the_model_of_earlier_versions() -> None:
    torch.manual_seed(7)
    model = STEC(Fields((6, 5, 4), 1), STECConfig())
    sums = {name: p.double().abs().sum().item() for name, p in model.named_parameters()}
    assert len(sums) == 36
    assert {name: sums[name] for name in INITIAL} == pytest.approx(INITIAL, abs=1e-5)
    torch.manual_seed(8)
    ids = torch.stack([torch.randint(0, n, (6,)) for n in (6, 5, 4)], 1)
    values = torch.randn(6, 1)
    with torch.no_grad():
        model.embedding.table.weight.mul_(30)
        model.embedding.alpha.mul_(30)
        assert model(ids, values).tolist() == pytest.approx(LOGITS["training"], abs=2e-5)
        assert model.eval()(ids, values).tolist() == pytest.approx(LOGITS["evaluation"], abs=2e-5)


def test_an_mlp_head_has_the_layer_order_of_fuxictr_and_its_own_dropout() -> None:
    head = build(STECConfig(embedding=8, mlp=(6, 4), mlp_batch_norm=True, mlp_dropout=0.2, dropout=0.1), False).head
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert [type(layer) for layer in head] == [*hidden, *hidden, nn.Linear]
    assert {layer.p for layer in head if isinstance(layer, nn.Dropout)} == {0.2}


@pytest.mark.parametrize(("pairs", "count"), [("full", 49), ("upper", 21), ("upper_diag", 28)])
def test_the_option_pairs_sets_the_number_of_pairs_in_the_head(pairs: Any, count: int) -> None:
    model = build(STECConfig(embedding=8, blocks=2, pairs=pairs), True)
    assert [norm.num_features for norm in model.norms] == [count * 8] * 3
    assert model.head[0].in_features == 3 * count * 8


def test_one_field_has_no_pair_above_the_diagonal() -> None:
    with pytest.raises(ValueError, match='pairs = "upper" needs two fields'):
        STEC(Fields((5,)), STECConfig(pairs="upper"))


def test_one_matrix_per_head_equals_a_block_diagonal_matrix() -> None:
    torch.manual_seed(0)
    bilinear = Bilinear(6, 2)
    nn.init.normal_(bilinear.weight)
    x = torch.randn(3, 4, 6)
    left, right = bilinear(x)
    assert left is x
    torch.testing.assert_close(right, x @ torch.block_diag(*bilinear.weight).T)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mlp_dropout": 0.2}, r"mlp_dropout = 0\.2 needs hidden layers\. Set mlp"),
        ({"mlp_batch_norm": True}, r"mlp_batch_norm = true needs hidden layers\. Set mlp"),
        ({"last": "block"}, r'last = "block" has no effect with fusion = "concat"\. Set fusion = "last"'),
        ({"last": "block", "fusion": "last", "blocks": 1}, r"blocks = 1 leaves no attention\. Set blocks = 2"),
        ({"interaction": "separate", "fusion": "last"}, 'the interaction of any block.* or last = "block"'),
    ],
)
def test_the_error_for_contradictory_options_says_how_to_fix_them(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        STECConfig(**options)


def test_only_an_mlp_head_has_a_note_about_its_cost() -> None:
    assert cost_note(STECConfig(), 22) is None
    note = cost_note(STECConfig(embedding=16, mlp=(400,)), 22)
    assert note is not None
    assert note.startswith("mlp = [400] trains in the plain form, with 22 x 22 x 16 = 7,744 numbers")
