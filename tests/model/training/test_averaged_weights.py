"""The average of the weights, and what it and the schedule change in training."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from model.experiment_config import Training
from model.layers import embedding_parameters
from model.stec.stec import STEC
from model.training.averaged_weights import AveragedWeights
from model.training.batches import Batches
from model.training.fit import Fitted, evaluation_steps, fit, predict, train_step
from model.training.metrics import evaluate
from tests.support.stec_models import clicks_of_pairs, stec

pytestmark = pytest.mark.numeric

TRAIN, VALID = clicks_of_pairs(2001, 1), clicks_of_pairs(500, 2)
RECIPE = Training(epochs=4, batch_size=200, learning_rate=0.03, patience=4)


def recipe(**changes: object) -> Training:
    return Training(**{name: getattr(RECIPE, name) for name in RECIPE.__struct_fields__} | changes)


def trained(**changes: object) -> tuple[STEC, Fitted]:
    model = stec()
    return model, fit(model, embedding_parameters(model), TRAIN, VALID, recipe(**changes))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def averaged_by_hand(states: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """Return the average after the weights of all steps. The first entry is the weights before the first step."""
    average = {name: tensor.double() for name, tensor in states[0].items()}
    for step, state in enumerate(states[1:], 1):
        d = min(decay, step / (step + 10))
        average = {name: d * average[name] + (1 - d) * tensor for name, tensor in state.items()}
    counters = {name: tensor for name, tensor in states[-1].items() if not tensor.is_floating_point()}
    return average | counters


def test_the_average_is_that_of_a_loop_over_the_steps() -> None:
    """Weights and running statistics are averaged in float64, and the counters of batch norms are copied."""
    settings = recipe(ema_half_life=1.0, ema_min_steps=1)
    model, batches = stec().double(), Batches(TRAIN, settings)
    average = AveragedWeights(model, settings, batches.steps_per_epoch)
    optimizer, states = torch.optim.Adam(model.parameters(), lr=0.03), [weights_of(model)]
    for batch in itertools.chain(batches.epoch(), batches.epoch(), batches.epoch()):
        double = dataclasses.replace(batch, values=batch.values.double(), labels=batch.labels.double())
        train_step(model, [], double, settings, optimizer)
        average.update()
        states.append(weights_of(model))
    expected = averaged_by_hand(states, 0.5 ** (1 / 10))
    found = average.model.state_dict()
    assert any("running_var" in name for name in found)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=1e-12, atol=1e-15)
        assert tensor.dtype == model.state_dict()[name].dtype


def test_the_trained_model_has_the_averaged_weights() -> None:
    """The average starts at the weights that `initialize` sets, which are not those of the new model."""
    model, states = stec(), list[dict[str, Tensor]]()

    def initialize() -> None:
        with torch.no_grad():
            model.embedding.table.weight.add_(1.0)
        states.append(weights_of(model))

    settings = recipe(epochs=1, ema_half_life=0.5, ema_min_steps=1, weights="averaged")
    rows = embedding_parameters(model), TRAIN, VALID, settings
    fit(model, *rows, on_rows=lambda rows: states.append(weights_of(model)), initialize=initialize)
    assert len(states) == 11
    expected = averaged_by_hand(states, 0.5 ** (1 / 5))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=1e-5, atol=1e-7)


class OneNumber(nn.Module):
    constant: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.register_buffer("constant", torch.zeros(1), persistent=False)


@pytest.mark.parametrize(("epochs", "steps"), [(2.0, 100), (0.1, 20)])
def test_the_half_life_is_in_epochs_but_has_a_minimum_in_steps(epochs: float, steps: int) -> None:
    model = OneNumber()
    average = AveragedWeights(model, Training(ema_half_life=epochs), steps_per_epoch=50)
    average.steps = 10_000  # long after the first steps
    model.weight.data.fill_(1.0)
    for _ in range(steps):
        average.update()
    assert average.model.weight.item() == pytest.approx(0.5)  # type: ignore[operator]


def test_constants_are_not_averaged() -> None:
    model = OneNumber()
    average = AveragedWeights(model, Training(ema_half_life=1.0), steps_per_epoch=50)
    model.constant.fill_(torch.nan)
    average.update()
    assert average.model.constant.item() == 0  # type: ignore[operator]


def test_an_update_allocates_no_copy_of_a_table() -> None:
    model = nn.Embedding(100_000, 8)
    average = AveragedWeights(model, Training(ema_half_life=1.0), steps_per_epoch=50)
    with profile(profile_memory=True) as measured:
        average.update()
    allocated = max((event.self_cpu_memory_usage for event in measured.key_averages()), default=0)
    assert allocated < 10_000 < model.weight.nbytes


def test_the_raw_weights_are_the_same_with_and_without_an_average() -> None:
    (plain, without), (other, with_average) = trained(), trained(ema_half_life=1.0)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True))
    for a, b in zip(without.history, with_average.history, strict=True):
        assert (a.loss, a.valid, a.learning_rate, a.improved) == (b.loss, b.valid, b.learning_rate, b.improved)
        assert a.other_valid is None
        assert b.other_valid not in (None, b.valid)
    assert without.other == {}


@pytest.mark.parametrize("weights", ["raw", "averaged"])
def test_each_of_the_two_weights_keeps_its_best(weights: str) -> None:
    model, fitted = trained(ema_half_life=0.3, ema_min_steps=1, weights=weights, evaluations_per_epoch=2)
    selected = predict(model, VALID)
    model.load_state_dict(fitted.other)
    other = predict(model, VALID)
    best = min(e.valid.logloss for e in fitted.history)
    best_other = min(e.other_valid.logloss for e in fitted.history if e.other_valid)
    assert evaluate(VALID.labels, selected).logloss == pytest.approx(best, abs=1e-6)
    assert evaluate(VALID.labels, other).logloss == pytest.approx(best_other, abs=1e-6)
    assert best != best_other


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_learning_rate_is_multiplied_by_the_factor(factor: float) -> None:
    _, fitted = trained(epochs=10, learning_rate=0.05, learning_rate_factor=factor)
    assert any(not e.improved for e in fitted.history[:-1])
    for before, after in itertools.pairwise(fitted.history):
        assert after.learning_rate == before.learning_rate * (1 if before.improved else factor)


def test_a_learning_rate_below_the_minimum_does_not_rise() -> None:
    _, fitted = trained(learning_rate=1e-12)
    assert [e.learning_rate for e in fitted.history] == [1e-12] * len(fitted.history)


def test_evaluations_in_the_middle_of_an_epoch_do_not_change_training() -> None:
    (_, whole), (_, parts) = (
        trained(learning_rate_factor=1.0),
        trained(learning_rate_factor=1.0, evaluations_per_epoch=3),
    )
    assert [str(e) for e in parts.history[:4]] == ["0.30", "0.60", "1", "1.30"]
    assert [e.end for e in whole.history] == [1, 2, 3, 4]
    ends = {e.epoch: e for e in parts.history if e.part == 1}
    assert len(ends) > 1
    assert all(ends[e.epoch].valid == e.valid for e in whole.history if e.epoch in ends)
    first = parts.history[:3]
    assert 0.3 * first[0].loss + 0.3 * first[1].loss + 0.4 * first[2].loss == pytest.approx(whole.history[0].loss)


def test_patience_counts_evaluations() -> None:
    _, fitted = trained(epochs=50, learning_rate=0.1, patience=2, evaluations_per_epoch=10)
    assert len(fitted.history) < 500
    assert [e.improved for e in fitted.history[-2:]] == [False, False]


def test_there_is_at_most_one_evaluation_per_step() -> None:
    assert evaluation_steps(50, 1) == [50]
    assert evaluation_steps(50, 3) == [16, 33, 50]
    assert evaluation_steps(2, 100) == [1, 2]
