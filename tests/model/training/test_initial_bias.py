"""Before training, the mean prediction of every model is the click rate of train."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.experiment_config import Training
from model.stec.stec import STECConfig
from model.training.batches import Split
from model.training.fit import predict
from model.training.initial_bias import output_bias, start_at_click_rate
from model.zoo import MODELS, Config, build
from tests.support.models import CASES, FIELDS, a_model, batch, small

pytestmark = pytest.mark.numeric

CLICK_RATE = 0.005
STECS: list[tuple[str, dict[str, Any]]] = [
    ("stec", {"fusion": "add"}),
    ("stec", {"fusion": "last"}),
    ("stec", {"interaction": "separate", "ffn": 0}),
    ("stec", {"mlp": (8,), "mlp_batch_norm": True, "mlp_dropout": 0.5}),
    ("stec", {"attention": "request", "pairs": "upper", "dropout": 0.5}),
    ("stec", {"embedding_norm": "batch", "level_eps": 0.0, "level_eps_relative": 0.01}),
    ("stec", {"embedding_norm": "rms", "level_eps": 1e-7, "layer_norm_eps": 5.0}),
]


@functools.cache
def rare_clicks(rows: int = 40_000, weights: tuple[float, ...] = ()) -> Split:
    """Return rows of which 0.5% are clicks. With two weights, those of non-clicks and clicks."""
    random = np.random.default_rng(2)
    ids = random.integers(0, FIELDS.sizes, (rows, len(FIELDS.sizes))).astype(np.int32)
    values = random.normal(size=(rows, FIELDS.numeric)).astype(np.float32)
    labels = np.zeros(rows, np.float32)
    labels[random.permutation(rows)[: int(rows * CLICK_RATE)]] = 1
    by_label = np.array(weights, np.float32)[labels.astype(int)] if weights else None
    return Split(ids, values, labels, by_label)


def started(config: Config, train: Split) -> nn.Module:
    torch.manual_seed(3)
    model = build(FIELDS, config)
    start_at_click_rate(model, train, Training(batch_size=512))
    return model


@pytest.mark.parametrize(("name", "options"), [*CASES, *STECS])
def test_the_mean_prediction_of_a_new_model_is_the_click_rate(name: str, options: dict[str, Any]) -> None:
    """The initial embeddings are large here, so that the predictions of different rows differ."""
    train = rare_clicks(16_000)
    model = started(small(name, **options), train)
    assert predict(model, train).mean() == pytest.approx(CLICK_RATE, rel=0.05)


USUAL = ("stec", "fm", "dcn")


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.full) for name in MODELS]
)
def test_the_mean_prediction_with_default_options_is_the_click_rate(name: str) -> None:
    options: dict[str, Any] = {"context1": ("user",)} if name == "finalmlp" else {}
    config, _ = MODELS[name]
    train = rare_clicks()
    assert predict(started(config(**options), train), train).mean() == pytest.approx(CLICK_RATE, rel=0.05)


@pytest.mark.parametrize(("name", "options"), [*CASES, *STECS])
def test_the_output_bias_moves_the_logit_of_every_row_by_the_same_amount(name: str, options: dict[str, Any]) -> None:
    model = a_model(name, **options).eval()
    ids, values, _ = batch(20)
    before = model(ids, values)
    with torch.no_grad():
        output_bias(model).add_(2.5)
    torch.testing.assert_close(model(ids, values), before + 2.5)


def test_the_click_rate_is_that_of_the_weighted_rows() -> None:
    train = rare_clicks(weights=(1.0, 40.0))
    weights = train.weights
    assert weights is not None
    mean = np.average(predict(started(small("deepfm"), train), train), weights=weights)
    assert mean == pytest.approx(40 * CLICK_RATE / (40 * CLICK_RATE + 1 - CLICK_RATE), rel=0.05)


def test_only_the_bias_and_the_batch_norms_change_and_no_random_number_is_drawn() -> None:
    torch.manual_seed(3)
    model = build(FIELDS, STECConfig(embedding=8, dropout=0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    start_at_click_rate(model, rare_clicks(2_000), Training(batch_size=512))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in changed if "running" not in name and "batches_tracked" not in name} == {"head.0.bias"}
    assert torch.equal(torch.get_rng_state(), state)
