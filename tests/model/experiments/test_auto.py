"""Test ctr-train --auto: the search, its time budget and its outputs."""

import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.cli.train import main
from model.experiment_config import Experiment, read_experiment
from model.experiments import auto
from model.experiments.auto import CHOSEN, Search, Trial, chosen_toml
from model.experiments.run_folder import open_run
from model.experiments.settings import changed, first_settings, neighbors, value_of, within
from model.experiments.time_budget import WRITING_S, TimeBudget, TimeUp
from model.experiments.train import train
from model.experiments.trial import OpenedLog, open_log, train_model
from model.training.batches import Split
from model.training.checkpoint import Checkpoint
from model.training.device import CPU
from model.training.early_stopping import Epoch
from model.training.metrics import Metrics
from tests.support.runs import TINY, experiment, make_root, trained_with


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("auto"), requests=300)


class Clock:
    """A clock that advances by a fixed time whenever it is read."""

    def __init__(self, tick_s: float) -> None:
        self.now_s, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


def search(root: Path, folder: Path, minutes: float, tick_s: float = 0.5, **training: object) -> tuple[Search, Clock]:
    tiny, clock = trained_with(read_experiment(root / TINY), **training), Clock(tick_s)
    log = open_log(tiny.data, root)
    budget = TimeBudget(60 * minutes, log.facts.rows, clock)
    return Search(tiny, log, folder, budget, CPU, lambda trial: None), clock


def test_the_search_tries_the_settings_of_the_file_and_returns_the_best_on_valid(root: Path, tmp_path: Path) -> None:
    found, _ = search(root, tmp_path, minutes=2)
    best = found.run()
    assert found.trials[0].experiment == read_experiment(root / TINY)
    assert best.score == max(trial.score for trial in found.trials)
    assert best.score == -min(epoch.valid.logloss for trial in found.trials for epoch in trial.history)
    assert len({str(trial.settings) for trial in found.trials}) == len(found.trials) > 6
    assert {trial.settings["embedding_l2"] for trial in found.trials} >= {0.0, 0.03, 0.1, 0.3, 1.0, 3.0}


def test_the_search_is_deterministic(root: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        found, _ = search(root, tmp_path / name, minutes=1)
        found.run()
        runs.append([(trial.settings, [epoch.valid for epoch in trial.history]) for trial in found.trials])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("minutes", [0.6, 1.5])
def test_the_search_stops_before_the_time_that_the_last_steps_need(root: Path, tmp_path: Path, minutes: float) -> None:
    found, clock = search(root, tmp_path, minutes)
    found.run()
    assert clock.now_s <= 60 * minutes - WRITING_S + clock.tick_s
    assert any(trial.history for trial in found.trials)


def test_a_budget_below_one_epoch_is_an_error_with_the_time_that_is_needed(root: Path, tmp_path: Path) -> None:
    found, clock = search(root, tmp_path, minutes=0.35, tick_s=2.0)
    with pytest.raises(ValueError, match=r"the time is too short: an epoch takes about \d+ s.*Use --minutes \d+"):
        found.run()
    assert clock.now_s < 60


def test_the_best_trial_beyond_the_grid_is_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each higher penalty is better, the search continues to higher penalties, up to the limit."""

    def pretend(
        tried: Experiment, log: OpenedLog, checkpoint: Checkpoint, progress: auto.TrialProgress, device: torch.device
    ) -> None:
        loss = 1 - 1e-4 * tried.training.embedding_l2
        for number in range(1, tried.training.epochs + 1):
            valid = Metrics(auc=0.6, logloss=loss if number == 1 else 1.0)
            progress.on_epoch(Epoch(number, 1.0, valid, 1e-3, 1e6, number == 1, 0.01))

    monkeypatch.setattr(auto, "train_model", pretend)
    found, _ = search(root, tmp_path, minutes=60, tick_s=0.001)
    assert found.run().settings["embedding_l2"] == 1000
    assert max(trial.settings["embedding_l2"] for trial in found.trials) == 1000


def test_trials_are_ranked_by_the_monitored_metric(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A higher penalty has a better AUC and a worse logloss."""

    def pretend(
        tried: Experiment, log: OpenedLog, checkpoint: Checkpoint, progress: auto.TrialProgress, device: torch.device
    ) -> None:
        gain = 1e-4 * tried.training.embedding_l2
        for number in range(1, tried.training.epochs + 1):
            progress.on_epoch(Epoch(number, 1.0, Metrics(0.6 + gain, 0.5 + gain), 1e-3, 1e6, number == 1, 0.01))

    monkeypatch.setattr(auto, "train_model", pretend)
    found, _ = search(root, tmp_path, minutes=60, tick_s=0.001, monitor="auc")
    assert found.run().settings["embedding_l2"] == 1000
    assert "valid AUC 0.70000, logloss 0.60000" in str(found.best)


@pytest.mark.parametrize("diverges", [lambda l2: l2 == 0, lambda l2: l2 in (0.3, 1.0), lambda l2: l2 > 0.1])
def test_a_trial_that_diverges_is_reported_and_the_search_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverges: Callable[[float], bool]
) -> None:
    def sometimes(tried: Experiment, *others: Any) -> Any:
        # Only the loss overflows here; training itself is real.
        hot = diverges(tried.training.embedding_l2) and tried.training.epochs > 1
        return train_model(changed(tried, "learning_rate", 1e30) if hot else tried, *others)

    monkeypatch.setattr(auto, "train_model", sometimes)
    found, _ = search(root, tmp_path, minutes=2.5)
    best = found.run()
    failed = [trial for trial in found.trials if trial.error]
    assert failed
    assert all(diverges(trial.experiment.training.embedding_l2) for trial in failed)
    assert "Training diverged. Lower training.learning_rate" in str(failed[0])
    assert failed[0].is_finished
    assert not best.error
    assert best.score > failed[0].score == -math.inf


def test_a_search_whose_trials_all_diverge_is_an_error_with_the_reason(root: Path, tmp_path: Path) -> None:
    found, _ = search(root, tmp_path, minutes=60, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"all 6 trials failed\. trial 1, round 1: .*: failed: .*Training diverged"):
        found.run()


def test_the_run_is_the_one_that_ctr_train_gives_with_the_chosen_settings(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a single step, the search ends before its time is up, so the test does not depend on the machine."""
    monkeypatch.setattr(auto, "STEPS", auto.STEPS[:1])
    out, toml = tmp_path / "run", root / TINY
    assert main([str(toml), "--data", str(root), "--out", str(out), "--auto", "--minutes", "10"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"trial 1, round 1: embedding_l2 0, .*: best epoch \d of 2, valid logloss 0\.\d{5}", printed)
    assert "base rate" in printed
    chosen = tomllib.loads((out / CHOSEN).read_text())
    assert (out / CHOSEN).read_text() in printed
    _, stored, _, metrics = open_run(out)
    for section, keys in chosen.items():
        for key, value in keys.items():
            assert getattr(getattr(stored, section), key) == value
    assert train(stored, root, tmp_path / "again").test == metrics.test
    assert not list((root / "unfinished").iterdir())


def test_each_line_of_a_trial_shows_its_round(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auto, "STEPS", ())
    toml = tmp_path / "more.toml"
    toml.write_text((root / TINY).read_text().replace("epochs = 2", "epochs = 6"))
    command = [str(toml), "--data", str(root), "--out", str(tmp_path / "run"), "--auto", "--minutes", "10"]
    assert main(command) == 0
    shown = re.findall(r"^trial (\d+), round (\d+): ", capsys.readouterr().out, re.MULTILINE)
    rounds = [[int(round) for number, round in shown if number == trial] for trial in dict(shown)]
    assert rounds == [[*range(1, len(each) + 1)] for each in rounds]
    assert max(map(len, rounds)) > 1


def test_test_rows_do_not_influence_the_search(root: Path, tmp_path: Path) -> None:
    losses = []
    for name, flip in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        found, _ = search(root, tmp_path / name, minutes=0.4)
        if flip:
            test = found._log.splits["test"]
            found._log.splits["test"] = replace(test, ids=test.ids * 0, labels=1 - test.labels)
        losses.append((found.run().settings, found.best.score))
    assert losses[0] == losses[1]


def test_a_budget_that_is_over_before_the_first_epoch_is_an_error(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(root / TINY), "--data", str(root), "--out", str(tmp_path / "run"), "--auto", "--minutes", "0.001"]
    assert main(command) == 2
    assert "but 0 s were left before the first epoch. Increase --minutes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not list((root / "unfinished").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--auto"], "--auto and --minutes M must be used together"),
        (["--minutes", "4"], "--auto and --minutes M must be used together"),
        (["--auto", "--minutes", "0"], "0 is not a number of minutes above 0"),
        (["--auto", "--minutes", "4", "--seeds", "2"], "--seeds trains new models"),
        (["--auto", "--minutes", "4", "--warm", "run"], "not allowed with argument"),
        (["--warm", "run", "--seeds", "2"], "--seeds trains new models"),
    ],
)
def test_contradicting_options_are_rejected(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["x.toml", "--out", str(tmp_path / "run"), *arguments])
    assert message in capsys.readouterr().err


def test_the_first_settings_follow_the_size_of_the_log() -> None:
    def log(rows: int, clicks: int) -> Split:
        labels = torch.zeros(rows).numpy()
        labels[:clicks] = 1
        return Split(labels[:, None], labels[:, None], labels)

    small, large = (first_settings(experiment(1), log(*size)).training for size in ((20_000, 100), (800_000, 40_000)))
    assert (small.batch_size, small.net_l2) == (256, 0.1)
    assert (large.batch_size, large.net_l2) == (4096, 2.5e-4)


def test_neighbors_leave_out_values_that_the_model_does_not_accept() -> None:
    narrow = changed(experiment(1), "embedding", 2)  # with two heads, a width of 1 is impossible
    assert [value_of(other, "embedding") for other in neighbors(narrow, "embedding", 2)] == [4]
    assert [
        value_of(other, "batch_size") for other in neighbors(changed(narrow, "batch_size", 64), "batch_size", 4)
    ] == [256]
    assert within("embedding_l2", 0.0316227766) == 0.032


def test_the_toml_of_a_trial_that_ran_out_of_time_has_its_epochs(tmp_path: Path) -> None:
    trial = Trial(1, experiment(1), Checkpoint(tmp_path / "x", ""), [Epoch(1, 1.0, Metrics(0.6, 0.5), 1e-3, 1.0, True)])
    assert tomllib.loads(chosen_toml(trial))["training"]["epochs"] == 1
    assert trial.trained().training.epochs == 1
    assert trial.experiment.training.epochs == 50


def test_an_epoch_that_ends_too_late_is_not_started() -> None:
    clock = Clock(0.0)
    budget = TimeBudget(200.0, {"train": 10, "valid": 10, "test": 20}, clock)
    budget.start_epoch()
    clock.now_s = 30.0
    budget.on_epoch()
    # The last steps take 1.5 times as long as an epoch, plus the time to write the run: 51 s.
    clock.now_s = 200.0 - 51 - 30
    budget.start_epoch()
    clock.now_s += 1
    with pytest.raises(TimeUp):
        budget.start_epoch()
