"""A model that is trained on all clicks and a share of the non-clicks predicts the probabilities of the whole log."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.baselines.lr import LRConfig
from model.data.prepare.negatives import draws
from model.data.prepare.prepare import prepare
from model.experiment_config import Experiment, Training
from model.experiments.train import train
from model.layers import Fields, embedding_parameters
from model.training.batches import Split
from model.training.fit import fit, predict
from model.training.initial_bias import start_at_click_rate
from model.zoo import MODELS, build
from tests.support.models import FIELDS, small
from tests.support.runs import DATA, make_root

RATES = np.array([0.02, 0.05, 0.1, 0.2, 0.4])
# Each step uses all rows, so that the result is the maximum-likelihood estimate.
RECIPE = Training(epochs=150, batch_size=200_000, learning_rate=0.05, unknown_rate=0.0, patience=150)


def one_field(rows: int, seed: int) -> Split:
    """Return rows with one field, whose tokens 2 to 6 have the click rates in RATES."""
    random = np.random.default_rng(seed)
    token = random.integers(0, len(RATES), rows)
    labels = (random.random(rows) < RATES[token]).astype(np.float32)
    return Split((token + 2)[:, None].astype(np.int32), np.zeros((rows, 0), np.float32), labels)


def sampled(split: Split, rate: float) -> Split:
    """Return all clicks, and a share of the non-clicks, as ctr-prepare keeps them."""
    kept = (split.labels > 0) | (draws(0, len(split)) < rate)
    return replace(split.select(np.flatnonzero(kept)), kept_negatives=rate)


def fitted(train: Split) -> NDArray[np.float64]:
    """Return the predictions of a logistic regression for the tokens of one_field().

    The weights with the lowest loss on train are kept.
    """
    weights = train.log_weights()
    valid = replace(train, weights=None if weights is None else weights.astype(np.float32), kept_negatives=1.0)
    torch.manual_seed(1)
    model = build(Fields((7,), 0, (), ("token",)), LRConfig())
    start_at_click_rate(model, train, RECIPE)
    fit(model, embedding_parameters(model), train, valid, RECIPE)
    return predict(
        model,
        replace(
            valid, ids=np.arange(2, 7)[:, None], values=np.zeros((5, 0), np.float32), labels=np.zeros(5, np.float32)
        ),
    )


def log_odds_errors(predicted: NDArray[np.float64], split: Split) -> NDArray[np.float64]:
    """Return how far the log-odds are from those of the true rates, in standard errors of the split's counts."""
    clicks = np.bincount(split.ids[:, 0] - 2, split.labels)
    others = np.bincount(split.ids[:, 0] - 2, 1 - split.labels)
    errors: NDArray[np.float64] = (logit(predicted) - logit(RATES)) / np.sqrt(1 / clicks + 1 / others)
    return errors


def logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    odds: NDArray[np.float64] = np.log(probability / (1 - probability))
    return odds


def test_the_probabilities_agree_with_those_of_the_whole_log() -> None:
    whole = one_field(100_000, 1)
    kept = sampled(whole, 0.1)
    assert len(kept) < 0.3 * len(whole)
    for train_split in (whole, kept):
        errors = log_odds_errors(fitted(train_split), train_split)
        assert np.abs(errors).max() < 3.5
        assert np.square(errors).mean() < 2.5
    without = fitted(replace(kept, kept_negatives=1.0))
    assert log_odds_errors(without, kept).min() > 20  # the offset matters


def test_both_rates_together_give_the_probabilities_of_the_true_traffic() -> None:
    """The log has half of the non-clicks of the traffic, and ctr-prepare keeps a fifth of these."""
    in_log = replace(sampled(one_field(150_000, 3), 0.5), negative_rate=0.5)
    rows = np.random.default_rng(5).random(len(in_log)) < 0.2
    kept = replace(in_log.select(np.flatnonzero((in_log.labels > 0) | rows)), kept_negatives=0.2)
    assert np.abs(log_odds_errors(fitted(kept), kept)).max() < 3.5


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_every_model_starts_at_the_click_rate_of_the_whole_log(kind: str) -> None:
    random = np.random.default_rng(2)
    ids = random.integers(0, FIELDS.sizes, (20_000, len(FIELDS.sizes))).astype(np.int32)
    values = random.normal(size=(20_000, FIELDS.numeric)).astype(np.float32)
    labels = (random.random(20_000) < 0.03).astype(np.float32)
    weights = np.where(labels > 0, 2.0, 1.0).astype(np.float32)
    whole = Split(ids, values, labels, weights)
    torch.manual_seed(3)
    model = build(FIELDS, small(kind))
    start_at_click_rate(model, sampled(whole, 0.2), Training(batch_size=512))
    rate = np.average(labels, weights=weights)
    assert np.average(predict(model, whole), weights=weights) == pytest.approx(rate, rel=0.08)


def test_a_run_on_a_sampled_log_is_calibrated_for_the_whole_log(tmp_path: Path) -> None:
    root = make_root(tmp_path, 3000)
    data = msgspec.structs.replace(DATA, negative_rate=1.0, train_negative_rate=0.2, prepared="sampled")
    assert prepare(root, data).facts.splits["train"].dropped > 5000
    recipe = Training(epochs=3, batch_size=256, learning_rate=0.003, embedding_l2=0.001)
    metrics = train(Experiment(name="sampled", data=data, model=LRConfig(), training=recipe), root, root / "run")
    assert metrics.test.predicted_over_observed == pytest.approx(1, abs=0.25)  # without the offset, it is about 4
    assert metrics.test.base_logloss is not None
    assert metrics.test.logloss < 1.05 * metrics.test.base_logloss
