"""The differences from FuxiCTR that model/baselines/README.md states."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.baselines.destine import DESTINE, DESTINEConfig, Layer
from model.layers import Fields


def loss_gradients(logit: float, label: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the gradients of FuxiCTR's loss and of ours with respect to one logit."""
    y = torch.tensor([label], dtype=dtype)
    theirs, ours = (torch.tensor([logit], dtype=dtype, requires_grad=True) for _ in range(2))
    functional.binary_cross_entropy(theirs.sigmoid(), y).backward()
    functional.binary_cross_entropy_with_logits(ours, y).backward()
    assert theirs.grad is not None
    assert ours.grad is not None
    return theirs.grad.item(), ours.grad.item()


@pytest.mark.parametrize(
    ("dtype", "logit", "share"),
    [
        (torch.float32, 16.0, 1.0),
        (torch.float32, 16.7, 0.0),
        (torch.float32, -27.0, 1.0),
        (torch.float32, -30.0, 0.094),  # e^(27.6 - 30)
        (torch.float64, 27.0, 1.0),
        (torch.float64, -27.0, 1.0),
        (torch.float64, 30.0, 0.094),
        (torch.float64, -30.0, 0.094),
    ],
)
def test_fuxictrs_loss_loses_the_gradient_of_large_wrong_logits(dtype: torch.dtype, logit: float, share: float) -> None:
    theirs, ours = loss_gradients(logit, float(logit < 0), dtype)
    assert abs(ours) == pytest.approx(1, abs=1e-6)
    assert theirs / ours == pytest.approx(share, abs=1e-3)


class WithBias(nn.Linear):
    """A linear layer with a bias, which starts at 0."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, dtype=linear.weight.dtype)
        self.weight = linear.weight
        nn.init.zeros_(self.bias)


def trained(with_bias: bool) -> Tensor:
    """Return the probabilities of a small DESTINE after 30 steps, with or without FuxiCTR's bias of v."""
    torch.manual_seed(0)
    model = DESTINE(
        Fields([50] * 10), DESTINEConfig(embedding=10, attention=16, layers=2, mlp=(32,), embedding_std=1.0)
    ).double()
    if with_bias:
        for layer in model.layers:
            assert isinstance(layer, Layer)
            layer.value = WithBias(layer.value)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 50, (30, 256, 10), generator=draw)
    labels = (torch.rand(30, 256, generator=draw) < 0.2).double()
    values = torch.empty(256, 0, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(30):
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(model(ids[step], values), labels[step]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
    with torch.no_grad():
        probabilities: Tensor = model.eval()(ids[0], values).sigmoid()
    return probabilities


def test_a_redundant_bias_changes_training() -> None:
    assert (trained(with_bias=True) - trained(with_bias=False)).abs().max() > 0.03


@pytest.mark.parametrize(("heads", "is_same"), [(1, True), (2, False)])
def test_fuxictrs_split_into_heads_mixes_fields_if_there_are_several(heads: int, is_same: bool) -> None:
    x_BFD = torch.arange(2 * 3 * 4).view(2, 3, 4)
    theirs = x_BFD.view(2 * heads, 3, 4 // heads)
    ours = x_BFD.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1)
    assert torch.equal(theirs, ours) is is_same
