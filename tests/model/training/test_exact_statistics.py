"""Exact statistics: each batch norm gets the statistics of all of train, and the rest of the model is unchanged."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.experiment_config import Training
from model.layers import Fields
from model.stec.stec import STEC, STECConfig
from model.training.batches import Split
from model.training.exact_statistics import measure_batch_norms
from model.zoo import MODELS, build
from tests.support.models import small

pytestmark = pytest.mark.numeric

RECIPE = Training(batch_size=64, unknown_rate=0.0)


class OneNorm(nn.Module):
    """A batch norm on the values, after a dropout that would change them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        logit: Tensor = self.norm(self.dropout(self.scale * values)).sum(1)
        return logit


def rows(count: int = 640) -> Split:
    random = np.random.default_rng(1)
    ids = random.integers(2, 8, (count, 3))
    return Split(ids, random.normal(3.0, 2.0, (count, 3)).astype(np.float32), np.ones(count, np.float32))


def test_the_statistics_are_computed_from_all_of_train() -> None:
    model, train = OneNorm(), rows()
    measure_batch_norms(model, train, RECIPE)
    assert model.norm.running_mean is not None
    assert model.norm.running_var is not None
    np.testing.assert_allclose(model.norm.running_mean, train.values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        model.norm.running_var, train.values.var(0), rtol=0.02
    )  # This is the mean of the variances within the batches.
    assert model.norm.momentum == 0.1
    assert not model.norm.training


def test_measuring_again_changes_neither_statistics_nor_weights() -> None:
    for name in MODELS:
        torch.manual_seed(1)
        model = build(Fields([8] * 3, 3, [True] * 6, [*"abcdef"]), small(name, **without_context(name)))
        before = {key: value.clone() for key, value in model.named_parameters()}
        measure_batch_norms(model, rows(), RECIPE)
        once = {key: value.clone() for key, value in model.state_dict().items()}
        measure_batch_norms(model, rows(), RECIPE)
        assert all(torch.equal(value, once[key]) for key, value in model.state_dict().items()), name
        assert all(torch.equal(value, before[key]) for key, value in model.named_parameters()), name


def without_context(name: str) -> dict[str, tuple[str, ...]]:
    return {"context1": (), "context2": ()} if name == "finalmlp" else {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embedding_norm": "batch", "level_eps": 1e-7},
        {"embedding_norm": "rms", "level_eps": 0.0, "level_eps_relative": 0.01},
    ],
    ids=str,
)
def test_the_mean_prediction_no_longer_depends_on_the_last_batches(options: dict[str, Any]) -> None:
    """Measuring the batch statistics restores the predictions of a model whose running statistics were reset."""
    torch.manual_seed(0)
    train = rows()
    model = STEC(Fields([8] * 3, 3), STECConfig(embedding=8, blocks=1, embedding_std=0.1, **options))
    measure_batch_norms(model, train, RECIPE)
    ids, values = torch.from_numpy(train.ids), torch.from_numpy(train.values)
    right = model(ids, values)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.reset_running_stats()
    assert not torch.allclose(model(ids, values), right, atol=1e-2)
    measure_batch_norms(model, train, RECIPE)
    torch.testing.assert_close(model(ids, values), right)
