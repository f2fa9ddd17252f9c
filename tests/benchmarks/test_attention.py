"""The benchmark of attention: what it reports for attention that selects nothing, and for one that selects a field."""

import pytest
import torch

from benchmarks.attention import normalized_entropy, rows_of
from contract.schema import Attention
from export.graphs.block import blocks_of
from model.layers import Fields
from model.stec.stec import STEC, STECConfig
from model.training.batches import Split

pytestmark = pytest.mark.numeric


def test_the_entropy_is_one_for_uniform_weights_and_zero_for_a_single_field() -> None:
    uniform = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0]])  # the second field may attend to two fields only
    single = torch.eye(4)[:2]
    weight_LBFFH = torch.stack([uniform, single], -1)[None, None]
    assert normalized_entropy(weight_LBFFH).tolist() == [[[[1, 0], [1, 0]]]]


@pytest.mark.parametrize(("attention", "uniform"), [("full", "0.250"), ("request", "0.375")])
def test_the_weights_of_a_model_whose_scores_are_zero_are_uniform(attention: Attention, uniform: str) -> None:
    torch.manual_seed(0)
    fields = Fields((7, 6, 5), 1, (True, False, False, True))
    model = STEC(fields, STECConfig(embedding=8, blocks=2, heads=2, attention=attention)).eval()
    with torch.no_grad():
        for block in blocks_of(model):
            for parameter in block.project.parameters():
                parameter.zero_()
    ids = torch.stack([torch.randint(0, size, (50,)) for size in fields.sizes], 1)
    split = Split(ids.numpy(), torch.randn(50, 1).numpy(), torch.zeros(50).numpy())
    with torch.inference_mode():
        rows = rows_of("x", model, split)
    assert [row[:3] for row in rows[:-1]] == [["x", block, head] for block in "12" for head in "12"]
    assert {(row[3], row[4]) for row in rows[:-1]} == {("1.000", f"{uniform} ({uniform})")}
    assert rows[-1][1] == "last"
