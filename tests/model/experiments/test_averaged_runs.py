"""Runs that average the weights: one run evaluates both the raw and the averaged weights."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from model.experiment_config import TRAINING_OF_0_9, Experiment, read_experiment, with_stored_defaults
from model.experiments import auto
from model.experiments.auto import Search
from model.experiments.report import write_report
from model.experiments.run_folder import RunMetrics, open_run
from model.experiments.run_registry import FinishedRun, digest
from model.experiments.time_budget import TimeBudget
from model.experiments.train import train
from model.experiments.trial import open_log, run_trial
from model.training.device import CPU
from model.training.exact_statistics import measure_batch_norms
from tests.support.runs import FACTS, TINY, make_root, trained_with

# With a constant learning rate and no early stopping, the weights that are selected do not change training.
CONSTANT = {"epochs": 2, "batch_size": 128, "learning_rate": 0.01, "learning_rate_factor": 1.0, "patience": 50}
AVERAGED = {"ema_half_life": 0.5, "ema_min_steps": 2, "evaluations_per_epoch": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("averaged"), requests=300)


def trained(root: Path, out: Path, **training: object) -> RunMetrics:
    experiment = trained_with(read_experiment(root / TINY), **(CONSTANT | AVERAGED | training))
    return train(experiment, root, out)


@pytest.mark.parametrize("exact", [True, False])
def test_a_run_measures_the_other_weights_as_a_run_that_selects_them(root: Path, tmp_path: Path, exact: bool) -> None:
    raw = trained(root, tmp_path / "raw", weights="raw", exact_statistics=exact)
    averaged = trained(root, tmp_path / "averaged", weights="averaged", exact_statistics=exact)
    assert raw.other is not None
    assert averaged.other is not None
    assert (raw.other.weights, averaged.other.weights) == ("averaged", "raw")
    for selected, other in ((raw, averaged.other), (averaged, raw.other)):
        assert (selected.test, selected.best_epoch, selected.best_part, selected.best) == (
            other.test,
            other.best_epoch,
            other.best_part,
            other.best,
        )
        assert selected.valid.logloss == pytest.approx(other.valid.logloss, abs=1e-9)
    assert raw.test != averaged.test
    assert_statistics_are_exact(root, tmp_path / "averaged", exact)


def assert_statistics_are_exact(root: Path, run: Path, exact: bool) -> None:
    """With exact statistics, measuring those of the averaged weights again changes nothing."""
    model, experiment, _, _ = open_run(run)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_batch_norms(model, open_log(experiment.data, root).splits["train"], experiment.training)
    same = [torch.equal(before[name], t) for name, t in model.state_dict().items() if "running" in name]
    assert same
    assert all(same) if exact else not all(same)


def finished(experiment: Experiment, metrics: Sequence[RunMetrics]) -> list[FinishedRun]:
    return [FinishedRun(digest(experiment), experiment, FACTS, m, {"torch": "2"}, "2026-01-01") for m in metrics]


def test_the_report_and_the_progress_lines_show_both_weights(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = [trained(root, tmp_path / f"{seed}", weights="averaged", seed=seed) for seed in (1, 2)]
    printed = capsys.readouterr().out
    assert "epoch 0.50* loss" in printed
    assert "epoch 2" in printed
    assert " raw AUC 0." in printed
    (*_, stored) = open_run(tmp_path / "1")
    assert stored == metrics[0]
    experiment = read_experiment(root / TINY)
    page = write_report(tmp_path / "tiny", experiment, finished(experiment, metrics))
    report = json.loads((tmp_path / "tiny.json").read_text())
    assert report["other_weights"] == "raw"
    others = [m.other for m in metrics if m.other]
    assert report["other_test_auc_mean"] == pytest.approx(sum(o.test.auc for o in others) / 2)
    for run, m, other in zip(report["runs"], metrics, others, strict=True):
        assert run["other"] == msgspec.to_builtins(other)
        assert (run["best_epoch"], run["best_part"], run["epochs"]) == (m.best_epoch, m.best_part, 2)
        assert f"| {m.seed} | averaged | {m.test.auc * 100:.2f} | {m.test.logloss:.4f} |" in page
        assert f"| {m.seed} | raw | {other.test.auc * 100:.2f} | {other.test.logloss:.4f} |" in page
        assert f"{other.valid.logloss:.4f} | {other.best} |" in page
    assert "Mean of the raw weights: test AUC" in page


def test_metrics_of_version_0_9_can_be_read() -> None:
    epoch = {"epoch": 1, "loss": 0.5, "valid": {"auc": 0.7, "logloss": 0.3}, "learning_rate": 0.1}
    old = {"seed": 1, "parameters": 1, "best_epoch": 1, "seconds": 1.0, "valid": {"auc": 0.7, "logloss": 0.3}}
    history = [epoch | {"rows_per_s": 1.0, "improved": True}]
    metrics = msgspec.convert(old | {"test": old["valid"], "history": history}, RunMetrics)
    assert (metrics.best, metrics.epochs, metrics.other) == ("1", 1, None)


def test_a_warm_run_whose_weights_are_all_worse_keeps_the_earlier_ones_of_both(root: Path, tmp_path: Path) -> None:
    trained(root, tmp_path / "earlier", exact_statistics=False)
    worse = {"learning_rate": 3.0, "embedding_l2": 10.0, "exact_statistics": False, "weights": "averaged"}
    experiment = trained_with(read_experiment(root / TINY), **(CONSTANT | AVERAGED | worse))
    metrics = train(experiment, root, tmp_path / "run", warm=tmp_path / "earlier")
    assert metrics.other is not None
    assert (metrics.best, metrics.other.best) == ("0", "0")
    assert metrics.other.test == metrics.test
    earlier, kept = open_run(tmp_path / "earlier")[0], open_run(tmp_path / "run")[0]
    assert all(torch.equal(kept.state_dict()[name], tensor) for name, tensor in earlier.state_dict().items())


class Ticking:
    """A clock that advances whenever it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.2
        return self.now_s


@pytest.mark.parametrize("minutes", [0.5, 0.8])
def test_auto_chooses_by_the_averaged_weights_and_ends_with_whole_epochs(
    root: Path, tmp_path: Path, minutes: float
) -> None:
    """The best trial is the run that ctr-train gives with its settings, whenever the time is up."""
    keys: dict[str, object] = {"epochs": 4, "weights": "averaged", "evaluations_per_epoch": 3}
    tiny = trained_with(read_experiment(root / TINY), **(AVERAGED | keys))
    log = open_log(tiny.data, root)
    budget = TimeBudget(60 * minutes, log.facts.rows, Ticking(), weights=2, evaluations=3)
    best = Search(tiny, log, tmp_path, budget, CPU, lambda trial: None).run()
    assert best.score == -min(e.valid.logloss for e in best.history)
    assert best.is_finished or best.history[-1].part == 1
    _, metrics = run_trial(best.trained(), log, best.checkpoint, auto.Silence())
    again = train(best.trained(), root, tmp_path / "again")
    assert (again.test, again.other, again.best) == (metrics.test, metrics.other, metrics.best)
    assert [e.end for e in again.history] == [e.end for e in best.history]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('weights = "averaged"', 'weights = "averaged" needs an average, but ema_half_life is 0. Set ema_half_life'),
        ("ema_min_steps = 20", "ema_min_steps has no effect without an average of the weights. Set ema_half_life"),
        ("learning_rate_factor = 1.5", "learning_rate_factor"),
        ("learning_rate_factor = 0", "learning_rate_factor"),
        ("evaluations_per_epoch = 0", "evaluations_per_epoch"),
        ("ema_half_life = -1", "ema_half_life"),
    ],
)
def test_invalid_keys_are_errors_that_name_them(root: Path, tmp_path: Path, keys: str, message: str) -> None:
    (tmp_path / "x.toml").write_text(f"{(root / TINY).read_text()}\n{keys}\n")
    with pytest.raises(ValueError) as raised:
        read_experiment(tmp_path / "x.toml")
    assert message in str(raised.value)


def test_a_stored_experiment_without_the_keys_has_the_defaults_of_its_version(root: Path) -> None:
    document = msgspec.to_builtins(read_experiment(root / TINY))
    for name in TRAINING_OF_0_9:
        del document["training"][name]
    stored = with_stored_defaults(document)["training"]
    found = {name: stored[name] for name in TRAINING_OF_0_9}
    assert found == {
        "ema_half_life": 0,
        "ema_min_steps": 20,
        "weights": "raw",
        "learning_rate_factor": 0.1,
        "evaluations_per_epoch": 1,
    }
