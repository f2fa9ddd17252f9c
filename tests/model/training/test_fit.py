"""The training loop follows the recipe in section 4.1.5 of the paper."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contract.vocabulary import MISSING, UNKNOWN
from model.experiment_config import Training
from model.layers import embedding_parameters
from model.stec.stec import STEC
from model.training.batches import Batches, hide_groups, hide_tokens
from model.training.early_stopping import Epoch
from model.training.fit import fit, l2_penalty, predict, train_step
from model.training.metrics import evaluate
from tests.support.stec_models import clicks_of_pairs, stec

pytestmark = pytest.mark.numeric


def train(model: STEC, recipe: Training) -> list[Epoch]:
    return fit(model, embedding_parameters(model), clicks_of_pairs(2000, 1), clicks_of_pairs(1000, 2), recipe).history


def test_training_learns_an_interaction_that_no_single_field_reveals() -> None:
    model = stec()
    train(model, Training(epochs=12, batch_size=128, learning_rate=0.01))
    test = clicks_of_pairs(2000, 3)
    assert evaluate(test.labels, predict(model, test)).auc > 0.88  # The AUC of the true probabilities is 0.9.


def test_the_model_has_the_weights_of_the_best_epoch() -> None:
    model = stec()
    history = train(model, Training(epochs=12, batch_size=64, learning_rate=0.03))
    best = min(e.valid.logloss for e in history)
    assert history[-1].valid.logloss > best
    valid = clicks_of_pairs(1000, 2)
    assert evaluate(valid.labels, predict(model, valid)).logloss == pytest.approx(best, abs=1e-9)


def test_the_error_for_a_model_that_diverges_in_the_last_step_of_an_epoch_says_how_to_fix_it() -> None:
    """The loss was finite until that step."""
    with pytest.raises(
        ValueError,
        match=r"after epoch 1, some predictions are not finite. Training diverged. Lower training.learning_rate",
    ):
        train(stec(), Training(epochs=2, batch_size=2000, learning_rate=1e30))


def test_the_learning_rate_drops_to_a_tenth_and_patience_stops_training() -> None:
    history = train(stec(), Training(epochs=50, batch_size=64, learning_rate=0.03, patience=2))
    assert len(history) < 50
    assert [e.improved for e in history[-2:]] == [False, False]
    for before, after in itertools.pairwise(history):
        expected = before.learning_rate * (1 if before.improved else 0.1)
        assert after.learning_rate == pytest.approx(max(expected, 1e-6))


def test_the_same_seed_gives_the_same_model() -> None:
    first, second = stec(), stec()
    recipe = Training(epochs=2, batch_size=128, seed=7)
    train(first, recipe)
    train(second, recipe)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_embedding_l2_shrinks_rows_that_are_in_no_batch() -> None:
    model = stec()
    before = model.embedding.table.weight[0].detach().norm()
    train(model, Training(epochs=2, batch_size=128, embedding_l2=0.1, unknown_rate=0.0))
    assert model.embedding.table.weight[0].detach().norm() < 0.8 * before


def test_the_penalty_is_half_l2_times_the_squared_norm() -> None:
    tables = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.full((1,), 2.0))]
    assert torch.as_tensor(l2_penalty(tables, 0.1)).item() == pytest.approx(0.05 * (6 + 4))


def test_net_l2_shrinks_weights_but_not_embeddings() -> None:
    free, held = stec(), stec()
    train(free, Training(epochs=3, batch_size=128, learning_rate=0.01))
    train(held, Training(epochs=3, batch_size=128, learning_rate=0.01, net_l2=1.0))
    head, other = held.head[0].weight, free.head[0].weight
    assert isinstance(head, Tensor)
    assert isinstance(other, Tensor)
    assert head.norm() < 0.5 * other.norm()
    assert held.embedding.table.weight.norm() > 0.5 * free.embedding.table.weight.norm()


def test_a_share_of_the_known_tokens_becomes_unknown_but_missing_values_do_not() -> None:
    ids = torch.full((10_000, 2), 5)
    ids[:5000, 1] = MISSING
    never_missing = torch.tensor([True, False])
    hidden = hide_tokens(ids, 0.1, never_missing, torch.Generator().manual_seed(0))
    assert (hidden[:, 0] == UNKNOWN).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (hidden[5000:, 1] == UNKNOWN).float().mean().item() == pytest.approx(0.1, abs=0.015)
    assert (hidden[:5000, 1] == MISSING).all()
    assert (ids[:, 0] == 5).all()


def test_tokens_become_missing_only_in_fields_that_are_never_missing() -> None:
    ids = torch.full((10_000, 2), 5)
    hidden = hide_tokens(ids, 0.1, torch.tensor([True, False]), torch.Generator().manual_seed(0))
    assert (hidden[:, 0] == MISSING).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert not (hidden[:, 1] == MISSING).any()


def hidden_batches(hide: tuple[tuple[str, ...], ...]) -> list[Tensor]:
    split = clicks_of_pairs(4000, 1)
    named = dataclasses.replace(split, names=[f"f{i}" for i in range(split.ids.shape[1])])
    return [batch.ids for batch in Batches(named, Training(batch_size=500, unknown_rate=0.1, hide=hide)).epoch()]


def test_a_group_of_fields_is_hidden_together_in_a_share_of_the_rows() -> None:
    alone, together = (torch.cat(hidden_batches(hide)) for hide in ((), (("f0", "f1"),)))
    both = [(ids[:, :2] == UNKNOWN).all(1).float().mean().item() for ids in (alone, together)]
    assert both[0] == pytest.approx(0.01, abs=0.01)
    assert both[1] == pytest.approx(0.11, abs=0.02)


def test_without_a_group_of_several_fields_the_random_stream_does_not_change() -> None:
    assert all(map(torch.equal, hidden_batches(()), hidden_batches((("f0",), ("f1",)))))


def test_a_group_hides_no_missing_value() -> None:
    ids = torch.tensor([[MISSING, 5], [7, MISSING], [7, 5]])
    hidden = hide_groups(ids, ids, 1.0, [[0, 1]], torch.Generator())
    assert hidden.tolist() == [[MISSING, UNKNOWN], [UNKNOWN, MISSING], [UNKNOWN, UNKNOWN]]


def test_the_loss_is_weighted_by_row() -> None:
    """A weight of 0 removes a row from the gradient."""
    model, split = stec(), clicks_of_pairs(64, 1)
    weights = np.where(np.arange(64) < 32, 2.0, 0.0).astype(np.float32)
    batch = dataclasses.replace(split, weights=weights).part(0, 64)
    batch = dataclasses.replace(batch, ids=batch.ids.long())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = train_step(model, [], batch, Training(), optimizer)
    logits = model(batch.ids, batch.values)
    expected = nn.functional.binary_cross_entropy_with_logits(logits[:32], batch.labels[:32])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_last_batch_of_one_row_is_skipped() -> None:
    seen: list[int] = []
    model = stec()
    split = clicks_of_pairs(129, 1)
    recipe = Training(epochs=1, batch_size=128)
    fit(model, embedding_parameters(model), split, clicks_of_pairs(50, 2), recipe, on_rows=seen.append)
    assert seen == [128]


def test_one_training_row_is_an_error() -> None:
    model = stec()
    with pytest.raises(ValueError, match="needs at least two"):
        fit(model, [], clicks_of_pairs(1, 1), clicks_of_pairs(50, 2), Training())


class Exploding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        return self.weight * torch.inf + ids[:, 0]


def test_the_error_for_a_loss_that_is_not_finite_says_how_to_fix_it() -> None:
    model = Exploding()
    with pytest.raises(ValueError, match="learning_rate"):
        fit(model, [model.weight], clicks_of_pairs(64, 1), clicks_of_pairs(64, 2), Training(epochs=1))


def test_metrics_need_both_classes() -> None:
    with pytest.raises(ValueError, match="only one"):
        evaluate(np.zeros(3), np.full(3, 0.5))


def test_predicting_does_not_change_the_model() -> None:
    model = stec()
    before = copy.deepcopy(model.state_dict())
    predict(model, clicks_of_pairs(100, 1))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
