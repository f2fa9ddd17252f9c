"""ctr-train --auto: a search for the settings that fit a log, within a time budget.

The search changes one setting at a time, starting with the L2 penalty on embeddings, until no change improves the
monitored metric. The candidates of a step train in rounds. After each round, only the candidates that are among the
best at the same epoch continue (successive halving: Jamieson and Talwalkar, Non-stochastic Best Arm Identification,
AISTATS 2016). The settings are chosen on valid. Test is read once, at the end.

Apart from the time at which it stops, the search is deterministic. Between rounds, the state of a trial is kept in a
checkpoint, so its weights are the same as those that ctr-train gives with the same settings.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from model.atomic_folder import check_replaceable
from model.experiment_config import Experiment, Training
from model.experiments.memory_plan import check_memory
from model.experiments.run_check import METRICS
from model.experiments.run_folder import RunMetrics, save_run
from model.experiments.settings import KEYS, L2_GRID, L2_STEP, changed, first_settings, neighbors, section_of, value_of
from model.experiments.time_budget import TimeBudget, TimeUp
from model.experiments.trial import UNFINISHED, OpenedLog, memory_of, open_log, run_trial, train_model
from model.layers import fields_of
from model.training.checkpoint import Checkpoint
from model.training.early_stopping import Epoch, score_of
from model.training.fit import Diverged
from model.zoo import build

CHOSEN = "chosen.toml"  # the file with the chosen settings in the run folder
ROUNDS_SHARE = 20  # the first round trains 1 / ROUNDS_SHARE of the epochs that fit into the budget
MAX_FIRST_ROUND = 4
MIN_PROMISING = 3  # a trial continues if it is one of this many best trials at the same epoch
# The settings and the ratio of their values, in the order of the steps.
STEPS = (
    ("net_l2", L2_STEP**2),
    ("batch_size", 4.0),
    ("embedding", 2.0),
    ("learning_rate", 3.0),
    ("embedding_l2", L2_STEP),
    ("net_l2", L2_STEP),
)


@dataclass
class Trial:
    """Settings that are tried, and the whole epochs trained with them so far.

    Attributes:
        number: The number of the trial, from 1.
        experiment: The experiment with the settings.
        checkpoint: The state after the last epoch.
        history: The evaluations of the finished epochs, and of the last one if training stopped early in the middle.
        error: Why the trial failed, for example because it diverged, or "".
        rounds: The number of rounds in which the trial has trained.
    """

    number: int
    experiment: Experiment
    checkpoint: Checkpoint
    history: list[Epoch] = field(default_factory=list)
    error: str = ""
    rounds: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether training is over: it has stopped early, has used all its epochs, or has failed."""
        has_stopped = stopped_early(self.history, self.experiment.training)
        return has_stopped or self.epochs >= self.experiment.training.epochs or bool(self.error)

    @property
    def epochs(self) -> int:
        """The number of epochs in the history. An epoch in which training stopped early counts as one."""
        return self.history[-1].epoch if self.history else 0

    @property
    def best(self) -> Epoch:
        """The best epoch, or part of one."""
        return next(epoch for epoch in reversed(self.history) if epoch.improved)

    @property
    def score(self) -> float:
        """The score of the best epoch (see score_of), or -infinity if the trial has failed or has no finished epoch."""
        return self.score_after(self.epochs)

    def score_after(self, epochs: int) -> float:
        """Return the highest score of the first epochs, or -infinity as in `score`."""
        recipe, history = self.experiment.training, [] if self.error else self.history
        return max((score_of(epoch.valid, recipe) for epoch in history if epoch.epoch <= epochs), default=-math.inf)

    @property
    def settings(self) -> dict[str, Any]:
        """The values of the settings that the search changes."""
        values = {key: value_of(self.experiment, key) for key in KEYS}
        return {key: value for key, value in values.items() if value is not None}

    def trained(self) -> Experiment:
        """Return the experiment with the number of epochs that were trained, so that ctr-train gives the same model."""
        return self.experiment if self.is_finished else changed(self.experiment, "epochs", self.epochs)

    def __str__(self) -> str:
        values = ", ".join(f"{key} {value:g}" for key, value in self.settings.items())
        name = f"trial {self.number}, round {self.rounds}"
        if self.error:
            return f"{name}: {values}: failed: {self.error}"
        seconds, valid = sum(epoch.wall_s or 0.0 for epoch in self.history), self.best.valid
        auc = f"AUC {valid.auc:.5f}, " if self.experiment.training.monitor == "auc" else ""
        return (
            f"{name}: {values}: best epoch {self.best} of {self.history[-1]}, valid {auc}logloss "
            f"{valid.logloss:.5f}, {seconds:.1f} s"
        )


def train_auto(
    experiment: Experiment,
    data: Path,
    out: Path,
    deadline_s: float,
    device: torch.device,
    on_trial: Callable[[Trial], None],
) -> tuple[Trial, RunMetrics]:
    """Search for settings, and write the run folder of the best trial.

    Args:
        experiment: The experiment whose settings are changed.
        data: The base folder for the experiment's relative paths.
        out: The run folder to write. An existing run there is replaced.
        deadline_s: The value of time.monotonic() by which the run folder must be written.
        device: The device to train on.
        on_trial: Called each time a trial has trained some epochs.

    Returns:
        The best trial and the metrics of its model.

    Raises:
        ValueError: For the same reasons as in train(), or if the time is too short.
    """
    check_replaceable(out, METRICS)
    log = open_log(experiment.data, data)
    recipe = experiment.training
    weights = 2 if recipe.ema_half_life else 1
    budget = TimeBudget(deadline_s, log.facts.rows, weights=weights, evaluations=recipe.evaluations_per_epoch)
    fields = fields_of(log.prepared.schema, log.prepared.vocabulary_sizes)
    budget.time_evaluation(build(fields, experiment.model).to(device), log.splits["valid"])
    folder = data / UNFINISHED
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="auto-", dir=folder) as checkpoints:
        best = Search(experiment, log, Path(checkpoints), budget, device, on_trial).run()
        model, metrics = run_trial(best.trained(), log, best.checkpoint, Silence(), device)
        chosen = {CHOSEN: chosen_toml(best).encode()}
        save_run(out, best.trained(), model, log.prepared.schema, log.prepared.vocabulary, metrics, log.facts, chosen)
    return best, metrics


def stopped_early(history: Sequence[Epoch], recipe: Training) -> bool:
    """Return whether the last `patience` evaluations were without improvement."""
    return len(history) > recipe.patience and not any(e.improved for e in history[-recipe.patience :])


class Search:
    """The search. All of its trials are in `trials`."""

    def __init__(
        self,
        experiment: Experiment,
        log: OpenedLog,
        folder: Path,
        budget: TimeBudget,
        device: torch.device,
        on_trial: Callable[[Trial], None],
    ) -> None:
        """Create the search.

        Args:
            experiment: The experiment whose settings are changed.
            log: The prepared log.
            folder: An empty folder for the checkpoints.
            budget: The time budget.
            device: The device to train on.
            on_trial: Called each time a trial has trained some epochs.
        """
        self._experiment, self._log, self._folder, self._budget = experiment, log, folder, budget
        self._device, self._on_trial = device, on_trial
        self.trials: list[Trial] = []

    @property
    def best(self) -> Trial:
        """The trial with the best monitored metric on valid."""
        return max(self.trials, key=lambda trial: trial.score)

    def run(self) -> Trial:
        """Search until the time is up or no step improves the best trial, and return the best trial.

        Raises:
            ValueError: If the time is not enough for one epoch, or if all of the first trials fail.
        """
        try:
            start = first_settings(self._experiment, self._log.splits["train"])
            self._compare([self._experiment, *(changed(start, "embedding_l2", l2) for l2 in L2_GRID)])
            if self.best.score == -math.inf:
                raise ValueError(f"all {len(self.trials)} trials failed. {self.trials[0]}")
            self._leave_the_edge("embedding_l2", L2_STEP)
            before = None
            while self.best is not before:  # settings that were tried are not tried again
                before = self.best
                for key, step in STEPS:
                    self._compare(neighbors(self.best.experiment, key, step))
                    self._leave_the_edge(key, step)
        except TimeUp:
            if self.best.score == -math.inf:
                failed = "".join(f" {trial}" for trial in self.trials if trial.error)
                raise ValueError(self._budget.too_short() + failed) from None
        return self.best

    def _leave_the_edge(self, key: str, step: float) -> None:
        """Try values beyond the highest or lowest value of a setting for as long as they are the best."""
        while True:
            tried = [value_of(trial.experiment, key) for trial in self.trials]
            if min(tried) < value_of(self.best.experiment, key) < max(tried):
                return
            if not self._compare(neighbors(self.best.experiment, key, step)):
                return

    def _compare(self, experiments: Iterable[Experiment]) -> bool:
        """Train new trials in rounds of increasing length, and drop the trials that are behind after each round.

        Returns:
            Whether one of the new trials is the best trial.
        """
        added = list[Trial]()
        for experiment in experiments:
            if experiment not in [trial.experiment for trial in self.trials] and self._fits(experiment):
                added.append(self._new_trial(experiment))
        trials, epochs = added, 0
        while trials:
            for trial in trials:
                self._train(trial, epochs or self._first_round(trial))
            epochs = max(trial.epochs for trial in trials)
            ranking = sorted(self.trials, key=lambda trial: trial.score_after(epochs), reverse=True)
            promising = ranking[: max(MIN_PROMISING, math.ceil(len(trials) / 2))]
            trials = [trial for trial in trials if trial in promising and not trial.is_finished]
            epochs *= 2
        return self.best in added

    def _fits(self, experiment: Experiment) -> bool:
        """Return whether there is enough memory for an experiment.

        Raises:
            ValueError: If there is not enough memory for the settings in the experiment's file.
        """
        try:
            if self._device.type == "cpu":
                check_memory(memory_of(experiment, self._log))
        except ValueError:
            if not self.trials:
                raise
            return False
        return True

    def _new_trial(self, experiment: Experiment) -> Trial:
        number = len(self.trials) + 1
        checkpoint = Checkpoint(self._folder / f"{number}.safetensors", "auto", whole_epochs=True)
        self.trials.append(Trial(number, experiment, checkpoint))
        return self.trials[-1]

    def _first_round(self, trial: Trial) -> int:
        """Return the number of epochs of the first round. It is 1 on a large log, and 0 for a trial that has failed."""
        if not any(trial.history for trial in self.trials):
            self._train(trial, 2)  # measures the duration of an epoch; the first one also allocates memory
        if trial.error:
            return 0
        return min(MAX_FIRST_ROUND, max(1, int(self._budget.affordable_epochs() / ROUNDS_SHARE)))

    def _train(self, trial: Trial, epochs: int) -> None:
        """Train a trial until it has completed this number of epochs. If the time is up, the finished epochs are kept.

        A trial that diverges or does not fit in memory has failed, and the search continues without it.
        """
        epochs = min(epochs, trial.experiment.training.epochs)
        before = trial.epochs
        if trial.is_finished or before >= epochs:
            return
        progress = TrialProgress(trial, self._budget)
        try:
            train_model(
                changed(trial.experiment, "epochs", epochs), self._log, trial.checkpoint, progress, self._device
            )
        except (Diverged, MemoryError, RuntimeError) as error:  # torch raises RuntimeError when out of memory
            trial.error = str(error)
        finally:
            if trial.error or trial.epochs > before:
                trial.rounds += 1
                self._on_trial(trial)


class TrialProgress:
    """Records the epochs of a trial, and stops it when the time is up."""

    def __init__(self, trial: Trial, budget: TimeBudget) -> None:
        self._trial, self._budget = trial, budget
        self._parts = list[Epoch]()  # the evaluations in the middle of an epoch

    def __enter__(self) -> Self:
        self._budget.start_epoch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def on_rows(self, rows: int) -> None:
        """Stop if the time is up."""
        self._budget.on_rows(rows)

    def on_epoch(self, epoch: Epoch) -> None:
        """Record the evaluations of an epoch when it ends, unless they come from the checkpoint.

        The checkpoint contains no unfinished epoch either, unless training has stopped early in its middle.
        """
        history = self._trial.history
        if history and epoch.end <= history[-1].end:
            return
        self._parts.append(epoch)
        if epoch.part == 1 or stopped_early([*history, *self._parts], self._trial.experiment.training):
            history += self._parts
            self._parts = []
            self._budget.on_epoch()


class Silence:
    """Shows nothing. It is used when the best trial is evaluated, because its epochs were already shown."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def on_rows(self, rows: int) -> None:
        """Show nothing."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Show nothing."""


def chosen_toml(trial: Trial) -> str:
    """Return the TOML lines of a trial's settings."""
    lines = {"model": list[str](), "training": list[str]()}
    for key, value in trial.settings.items():
        section = "model" if section_of(trial.experiment, key) is trial.experiment.model else "training"
        lines[section].append(f"{key} = {value}")
    if not trial.is_finished:
        lines["training"].append(f"epochs = {trial.epochs}  # the time was up")
    return "\n\n".join("\n".join([f"[{name}]", *keys]) for name, keys in lines.items() if keys) + "\n"
