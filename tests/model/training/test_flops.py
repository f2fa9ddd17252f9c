"""Compare FLOPs, as the paper counts them, with numbers that were counted by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.layers import Fields
from model.stec.stec import STEC, STECConfig
from model.training.flops import count_flops

IDS, VALUES = torch.full((2, 3), 2), torch.zeros(2, 0)


class OfValues(nn.Module):
    """A wrapper that gives a module the inputs of a model."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.width = inner, width

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        logit: Tensor = self.inner(torch.zeros(len(ids), self.width))
        return logit


class Attention(nn.Module):
    """One attention head of width 4 over 3 fields, which uses torch's fused kernel."""

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        x = torch.zeros(len(ids), 1, 3, 4)
        return functional.scaled_dot_product_attention(x, x, x)


class FactorizationMachine(nn.Module):
    """AFM's attention (Xiao et al., 2017) with the sizes of BARS on Avazu_x1: pairs of 22 fields, widths 10 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1, bias=False), nn.Softmax(1))
        self.out = nn.Linear(10, 1, bias=False)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        x_BFD = torch.ones(len(ids), 22, 10)
        i, j = torch.triu_indices(22, 22, 1)
        pairs = x_BFD[:, i] * x_BFD[:, j]
        logit: Tensor = self.out((self.attention(pairs) * pairs).sum(1))
        return logit


def test_a_multiply_add_of_a_linear_layer_is_one_flop() -> None:
    assert count_flops(OfValues(nn.Linear(5, 7), 5), IDS, VALUES) == 35


def test_the_flops_of_an_mlp_are_the_sum_of_its_weights() -> None:
    net = nn.Sequential(nn.Linear(23, 400), nn.ReLU(), nn.BatchNorm1d(400), nn.Dropout(0.5), nn.Linear(400, 1))
    assert count_flops(OfValues(net, 23), IDS, VALUES) == 23 * 400 + 400


def test_both_products_of_a_fused_attention_are_counted() -> None:
    assert count_flops(Attention(), IDS, VALUES) == 2 * 3 * 3 * 4


def test_afm_has_the_flops_in_the_paper() -> None:
    assert count_flops(FactorizationMachine(), IDS, VALUES) == 40_666  # Fig. 3: 41k


@pytest.mark.parametrize("fields", [2, 10, 22])
@pytest.mark.parametrize(("embedding", "heads", "blocks", "ffn"), [(8, 1, 1, 16), (16, 4, 2, 64), (12, 3, 3, 5)])
@pytest.mark.parametrize("attention", ["full", "request"])
def test_the_flops_of_stec_equal_the_closed_form(
    fields: int, embedding: int, heads: int, blocks: int, ffn: int, attention: str
) -> None:
    size = STECConfig(embedding=embedding, heads=heads, blocks=blocks, ffn=ffn, attention=attention)  # type: ignore[arg-type]
    model = STEC(Fields([3] * fields, is_context=[True] * fields), size)
    f, d, n = fields, embedding, blocks
    expected = n * (4 * f * d**2 + f**2 * d + 2 * f * d * ffn) + 2 * f * d**2 + (n + 1) * f**2 * d
    assert count_flops(model, torch.full((2, fields), 2), VALUES) == expected


def test_stec_on_avazu_has_100_thousand_flops_as_in_the_paper() -> None:
    model = STEC(Fields([3] * 22), STECConfig(embedding=16, blocks=1, heads=2, ffn=64))
    assert count_flops(model, torch.full((2, 22), 2), VALUES) == pytest.approx(100_000, rel=0.05)


def test_numeric_fields_and_an_mlp_head_are_counted() -> None:
    model = STEC(Fields([3], 1), STECConfig(embedding=8, blocks=1, heads=2, ffn=16, mlp=(5,)))
    encoder = 4 * 2 * 64 + 4 * 8 + 2 * 2 * 8 * 16 + 2 * 2 * 64
    assert count_flops(model, torch.full((2, 1), 2), torch.zeros(2, 1)) == encoder + 2 * 4 * 8 * 5 + 5


def test_counting_changes_neither_mode_nor_form() -> None:
    model = STEC(Fields([3] * 3), STECConfig(embedding=8)).train()
    count_flops(model, IDS, VALUES)
    assert model.training
    assert not model.plain
