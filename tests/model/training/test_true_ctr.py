"""Test the comparison of predictions with true probabilities."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from model.training.true_ctr import true_normalized_entropy


def test_the_normalized_entropy_is_the_mean_of_that_of_many_clicks() -> None:
    random = np.random.default_rng(1)
    true = random.beta(1, 15, 400)
    ctr = np.clip(true * random.lognormal(0, 0.3, 400), 0, 0.99)
    clicks = random.random((500, 400)) < true
    expected = np.mean([log_loss(row, ctr) for row in clicks]) / np.mean(
        [log_loss(row, np.full(400, true.mean())) for row in clicks]
    )
    assert true_normalized_entropy(ctr, true) == pytest.approx(expected, rel=0.01)


def test_the_constant_has_1_and_no_prediction_is_better_than_the_truth() -> None:
    random = np.random.default_rng(2)
    true = random.beta(1, 15, 400)
    assert true_normalized_entropy(np.full(400, true.mean()), true) == pytest.approx(1)
    best = true_normalized_entropy(true, true)
    assert 0 < best < 1
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert true_normalized_entropy(factor * true, true) > best


def test_certain_predictions_are_right_or_infinitely_wrong() -> None:
    true = np.array([0.0, 1.0, 0.5])
    assert np.isfinite(true_normalized_entropy(np.array([0.0, 1.0, 0.5]), true))
    assert true_normalized_entropy(np.array([0.0, 1.0, 1.0]), true) == np.inf


@pytest.mark.parametrize(
    ("ctr", "true", "message"),
    [([], [], "not 0"), ([0.1], [0.1, 0.2], "same number"), ([1.5], [0.5], "ctr"), ([0.5], [np.nan], "true")],
)
def test_what_is_not_a_probability_is_an_error(ctr: list[float], true: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        true_normalized_entropy(np.array(ctr), np.array(true))
