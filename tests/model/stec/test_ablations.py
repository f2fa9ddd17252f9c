"""The ablations are STEC with only the changes in the paper's Table 6."""

from typing import Any

import msgspec
import pytest
import torch

from model.layers import Fields
from model.stec.ablations import ABLATIONS, ablation
from model.stec.stec import STEC, Bilinear, STECConfig
from tests.support.stec_models import build, train_step

pytestmark = pytest.mark.numeric

SIZE = STECConfig(embedding=8, blocks=2, heads=2, ffn=16)


def parameters(size: STECConfig) -> int:
    return sum(p.numel() for p in build(size, False).parameters())


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_trains_in_the_factorized_form(name: str) -> None:
    model = build(ablation(name, SIZE), False)
    assert not model.plain
    assert train_step(model, 32)["logits"].isfinite().all()


def test_an_explicit_bilinear_layer_has_one_matrix_per_head_and_block() -> None:
    bl, nf = (build(ablation(name, SIZE), False) for name in ("STEC_BL", "STEC_NF"))
    assert sum(isinstance(module, Bilinear) for module in bl.modules()) == SIZE.blocks
    assert parameters(ablation("STEC_BL", SIZE)) == parameters(SIZE) + SIZE.blocks * 2 * 4 * 4
    names = {name for name, _ in nf.named_parameters()}
    assert {name for name, _ in bl.named_parameters()} - names == {
        f"blocks.{i}.{part}"
        for i in range(2)
        for part in ("ffn.0.weight", "ffn.0.bias", "ffn.2.weight", "ffn.2.bias", "ffn_norm.weight", "ffn_norm.bias")
    }


def test_the_explicit_interaction_shares_nothing_with_the_attention() -> None:
    """A change to the bilinear matrix of a block changes only the interaction of that block."""
    model = build(ablation("STEC_BL", SIZE), False).eval()
    ids, values = torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 2, dtype=torch.float64)
    before = model.levels(model.embedding(ids, values))
    with torch.no_grad():
        model.blocks[0].bilinear.weight.mul_(2)  # type: ignore[union-attr, operator]
    after = model.levels(model.embedding(ids, values))
    torch.testing.assert_close(after[0][1], 2 * before[0][1])
    for a, b in zip(after[1:], before[1:], strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_fewer_levels_give_a_smaller_head() -> None:
    level = 7 * 7 * 8
    lo, added = ablation("STEC_LO", SIZE), ablation("STEC_F", SIZE)
    assert parameters(added) == parameters(SIZE) - 2 * level  # The head is smaller.
    assert parameters(lo) == parameters(added) - 2 * 2 * level  # It also lacks two norms.


def test_added_levels_equal_concatenated_ones_with_the_same_weights() -> None:
    added, whole = build(ablation("STEC_F", SIZE), True), build(SIZE, True)
    weights = {name: t for name, t in added.state_dict().items() if name != "head.0.weight"}
    whole.load_state_dict(weights | {"head.0.weight": added.state_dict()["head.0.weight"].repeat(1, 3)})
    torch.testing.assert_close(train_step(added, 16)["logits"], train_step(whole, 16)["logits"])


def test_the_interaction_of_the_last_block_equals_a_standalone_one_with_one_block_fewer() -> None:
    """With last = "block", the last block has no parameters for attention and FFN."""
    by_block = msgspec.structs.replace(SIZE, fusion="last", last="block")
    by_layer = ablation("STEC_LO", msgspec.structs.replace(SIZE, blocks=1))
    a, b = (build(size, False) for size in (by_block, by_layer))
    assert a.state_dict().keys() == b.state_dict().keys()
    torch.testing.assert_close(train_step(a, 16)["logits"], train_step(b, 16)["logits"])


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("STEC_XX", {}, '"STEC_XX" is not an ablation.*Choose one of STEC_BL, STEC_NF, STEC_LO, STEC_F'),
        ("STEC_F", {"fusion": "last"}, "but fusion = 'last' makes it another model. Remove fusion"),
        ("STEC_BL", {"ffn": 0}, "but ffn = 0 makes it another model"),
        ("STEC_LO", {"interaction": "separate"}, "but interaction = 'separate' makes it another model"),
    ],
)
def test_an_ablation_of_another_model_is_an_error(name: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ablation(name, msgspec.structs.replace(SIZE, **changed))


def test_an_ablation_keeps_the_size() -> None:
    size = msgspec.structs.replace(SIZE, attention="request", pairs="upper", mlp=(8,))
    for name, changed in ABLATIONS.items():
        assert ablation(name, size) == msgspec.structs.replace(size, **changed)
    assert isinstance(STEC(Fields((3, 3)), ablation("STEC_NF", SIZE)), STEC)
