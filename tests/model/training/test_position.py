"""Position effects: training separates them from the quality of the candidates, and nothing else contains them."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from model.baselines.lr import LRConfig
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import read_prepared
from model.data.synthetic.click_model import sigmoid
from model.data.synthetic.traffic import Behavior, Traffic
from model.data.synthetic.traffic_events import show
from model.data.synthetic.traffic_files import simulated_answers
from model.data.synthetic.traffic_truth import Truth
from model.data_config import Data, SplitByTime
from model.experiment_config import Experiment, Training
from model.experiments.run_folder import RunMetrics, open_run
from model.experiments.train import train
from model.experiments.trial import load_split
from model.experiments.warm import open_warm_start
from model.layers import Fields, embedding_parameters, fields_of
from model.stec.stec import STECConfig
from model.training.batches import Split
from model.training.checkpoint import Checkpoint
from model.training.fit import fit, predict, train_step
from model.training.metrics import evaluate_split
from model.training.position import (
    MIN_CLICKS,
    NAME,
    PositionEffect,
    PositionEffects,
    add_position_effects,
    last_common,
    position_effects,
)
from model.training.true_ctr import true_normalized_entropy
from model.zoo import build

EFFECT = -0.5
START_S = 1_796_083_200.0  # 2026-12-01
BEHAVIOR = Behavior(users=1000, drift_std=0.0, user_std=0.0, position_effect=EFFECT)
CONTEXT = ("age_band", "country", "device", "slot", "hour", "session_depth")
CANDIDATE = ("ad", "campaign", "advertiser", "category", "format", "language", "bid")
RECIPE = Training(epochs=4, batch_size=256, embedding_l2=0.1, net_l2=0.01, evaluations_per_epoch=2, patience=4)


def shop(**keys: object) -> Data:
    keys = {"position": "position", "prepared": "prepared"} | keys
    return Data(
        reader="table",
        folder=".",
        files="shown.parquet",
        time="time",
        split=SplitByTime(valid="1d", test="1d"),
        label="click",
        context=CONTEXT,
        candidate=CANDIDATE,
        numeric=("session_depth", "bid"),
        min_count=3,
        **keys,  # type: ignore[arg-type]
    )


def experiment(data: Data, **changes: object) -> Experiment:
    model = STECConfig(embedding=8, blocks=1, ffn=16)
    return Experiment(name="shop", data=data, model=model, training=msgspec.structs.replace(RECIPE, **changes))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 7 days. The candidates are shown in the order of predictions that are almost the true probabilities."""
    root = tmp_path_factory.mktemp("position")
    traffic, truth = Traffic(2, START_S, BEHAVIOR), Truth()
    for day in range(7):
        requests = traffic.requests(traffic.times(4000, day), first=day * 4000)
        answers = simulated_answers(2, requests, 1.0)
        truth.add(requests, answers, *show(traffic, requests, answers))
    shown = truth.impressions()
    time_s = START_S + 86_400 * (pl.col("request") // 4000) + 3600
    shown = shown.with_columns(click=pl.col("clicked").cast(pl.Int8), time=time_s)
    shown.drop("clicked").write_parquet(root / "shown.parquet")
    return root


@pytest.fixture(scope="module")
def metrics(root: Path) -> RunMetrics:
    prepare(root, shop())
    return train(experiment(shop()), root, root / "run")


def true_probability(root: Path) -> NDArray[np.float64]:
    """Return the true probability of the rows of test at the average position."""
    test = pl.read_parquet(root / "shown.parquet").filter(pl.col("request") >= 6 * 4000)
    probability = test["probability"].to_numpy()
    logit = np.log(probability / (1 - probability)) - EFFECT * (test["position"].to_numpy() - 1)
    return sigmoid(logit)


def test_the_effects_are_learned_although_the_best_candidates_are_shown_first(metrics: RunMetrics) -> None:
    assert [effect.position for effect in metrics.positions] == [0, 1, 2]
    assert [effect.rows for effect in metrics.positions] == [20_000] * 3
    effects = [effect.effect for effect in metrics.positions]
    assert effects == pytest.approx([-EFFECT, 0, EFFECT], abs=0.12)
    assert sum(effects) == pytest.approx(0, abs=1e-5)


def test_the_model_is_closer_to_the_truth_at_the_average_position(root: Path, metrics: RunMetrics) -> None:
    prepare(root, shop(position="", prepared="without"))
    train(experiment(shop(position="", prepared="without")), root, root / "run-without")
    true, test = true_probability(root), load_split(read_prepared(root / "prepared"), "test")
    found = {name: predict(open_run(root / name)[0], test) for name in ("run", "run-without")}
    entropy = {name: true_normalized_entropy(ctr, true) for name, ctr in found.items()}
    assert entropy["run"] < entropy["run-without"]


def test_the_run_and_its_predictions_do_not_contain_the_effects(root: Path, metrics: RunMetrics) -> None:
    model, _, schema, _ = open_run(root / "run")
    assert position_effects(model) is None
    without = build(fields_of(schema, read_prepared(root / "prepared").vocabulary_sizes), experiment(shop()).model)
    assert model.state_dict().keys() == without.state_dict().keys()
    assert metrics.parameters == sum(parameter.numel() for parameter in without.parameters())


def test_the_final_metrics_are_without_the_effects_and_those_of_an_epoch_are_with_them(
    root: Path, metrics: RunMetrics
) -> None:
    model, *_ = open_run(root / "run")
    for name, found in (("valid", metrics.valid), ("test", metrics.test)):
        split = load_split(read_prepared(root / "prepared"), name)
        assert found.logloss == pytest.approx(evaluate_split(split, predict(model, split)).logloss)
    best = next(epoch for epoch in reversed(metrics.history) if epoch.improved)
    assert best.valid.logloss < metrics.valid.logloss - 1e-4


def test_a_warm_start_copies_the_effects(root: Path, metrics: RunMetrics) -> None:
    prepared = read_prepared(root / "prepared")
    warm = open_warm_start(root / "run", experiment(shop()), prepared)
    model = build(fields_of(prepared.schema, prepared.vocabulary_sizes), experiment(shop()).model)
    add_position_effects(model, load_split(prepared, "train"))
    warm.copy_to(model)
    effects = position_effects(model)
    assert effects is not None
    found = [effect.effect for effect in effects.learned()]
    assert found == pytest.approx([effect.effect for effect in metrics.positions], abs=1e-6)


def rows_at(positions: list[int], clicks: list[int]) -> Split:
    ids = np.full((len(positions), 1), 2, np.int32)
    labels = np.array(clicks, np.float32)
    return Split(ids, np.zeros((len(ids), 0), np.float32), labels, positions=np.array(positions, np.int32))


def test_a_run_that_continues_from_a_checkpoint_has_the_same_effects(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = rows_at(random.integers(0, 3, 3000).tolist(), (random.random(3000) < 0.3).astype(int).tolist())
    recipe = Training(epochs=4, batch_size=100, ema_half_life=0.5, patience=4)

    def trained(epochs: int, checkpoint: Checkpoint | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = build(Fields((5,), 0, (), ("token",)), LRConfig())
        add_position_effects(model, rows)
        recipe_ = msgspec.structs.replace(recipe, epochs=epochs)
        fitted = fit(model, embedding_parameters(model), rows, rows, recipe_, checkpoint=checkpoint)
        return model.state_dict() | {f"other/{name}": tensor for name, tensor in fitted.other.items()}

    expected = trained(4, None)
    checkpoint = Checkpoint(tmp_path / "run.safetensors", "this run")
    trained(2, checkpoint)
    found = trained(4, checkpoint)
    assert found.keys() == expected.keys()
    assert f"{NAME}.steps_P" in found
    assert f"other/{NAME}.steps_P" in found
    assert found[f"{NAME}.steps_P"].abs().min() > 0
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_net_l2_does_not_shrink_the_effects() -> None:
    """All clicks are at position 0, so its effect grows in every step, whatever the penalty."""
    rows = rows_at([0, 1] * 50, [1, 0] * 50)
    found = []
    for penalty in (0.0, 100.0):
        torch.manual_seed(1)
        model = build(Fields((5,), 0, (), ("token",)), LRConfig())
        model.add_module(NAME, effects := PositionEffects(rows_at([0, 1] * 50, [1, 1] * 50)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        train_step(model, embedding_parameters(model), rows.part(0, 100), Training(net_l2=penalty), optimizer)
        found.append(effects.effects().tolist())
    assert found[0] == found[1]
    assert found[0][0] > 0


def test_rare_late_positions_share_an_effect_and_a_missing_position_has_none() -> None:
    positions = [0] * 60 + [1] * 60 + [2] * 60 + [7] * 5 + [9] * 5 + [-1] * 10
    clicks = [1, 0] * 30 + [1, 0] * 30 + [1] * 20 + [0] * 40 + [1] * 10 + [0] * 10
    effects = PositionEffects(rows_at(positions, clicks))
    with torch.no_grad():
        effects.steps_P.copy_(torch.tensor([0.3, 0.1, -0.2]))
    assert [(effect.position, effect.rows, effect.clicks) for effect in effects.learned()] == [
        (0, 60, 30),
        (1, 60, 30),
        (2, 70, 30),
    ]
    by_position = effects(torch.tensor([0, 1, 2, 7, 100, -1]))
    assert by_position[2] == by_position[3] == by_position[4]
    assert by_position[5] == 0
    assert effects(torch.tensor(positions)).mean().abs() < 1e-6


def test_the_last_common_position_has_enough_clicks_after_it() -> None:
    positions = np.array([0] * 40 + [5] * (MIN_CLICKS - 1) + [8], np.int32)
    clicks = np.ones(len(positions), np.float32)
    assert last_common(positions, clicks) == 5
    assert last_common(positions[:-1], clicks[:-1]) == 0
    assert last_common(positions[:3], clicks[:3]) == 0


def test_the_mean_effect_is_that_of_the_whole_log() -> None:
    """With train_negative_rate, each kept non-click stands for several."""
    split = rows_at([0] * 100 + [1] * 100, [1] * 50 + [0] * 50 + [1] * 30 + [0] * 70)
    effects = PositionEffects(replace(split, kept_negatives=0.1))
    assert effects.shares_P.tolist() == pytest.approx([550 / 1280, 730 / 1280])


def test_copied_effects_keep_the_predictions_at_each_position() -> None:
    """The average position of the new log is another one, so the bias of the model changes."""
    split = rows_at([0] * 150 + [1] * 50, [1, 0] * 100)
    effects = PositionEffects(split)
    mean = effects.copy([PositionEffect(0, 100, 50, 0.4), PositionEffect(1, 100, 50, -0.4)])
    assert mean == pytest.approx(0.2)
    assert (effects(torch.tensor([0, 1])) + mean).tolist() == pytest.approx([0.4, -0.4])


def test_one_position_is_an_error() -> None:
    with pytest.raises(ValueError, match="fewer than two positions of train have 25 clicks"):
        PositionEffects(rows_at([3] * 100, [1, 0] * 50))
