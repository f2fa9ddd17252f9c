"""A run that is killed and started again ends with exactly the same weights as an uninterrupted one."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.experiment_config import Experiment, read_experiment
from model.experiments.run_folder import WEIGHTS, open_run
from model.experiments.train import train
from model.experiments.trial import UNFINISHED, open_log, run_trial
from model.layers import embedding_parameters
from model.stec.stec import STEC
from model.training.checkpoint import PROGRESS, Checkpoint, State
from model.training.early_stopping import EarlyStopping, Epoch
from model.training.fit import fit
from model.training.progress import EpochTable
from tests.support.runs import make_root, trained_with
from tests.support.stec_models import clicks_of_pairs, stec

EPOCHS = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose experiment uses all state that a checkpoint must keep.

    The experiment has dropout, hidden tokens and a falling learning rate.
    """
    root = make_root(tmp_path_factory.mktemp("resume"), requests=300)
    toml = root / "experiments" / "tiny.toml"
    text = (
        toml.read_text().replace("batch_size = 512", "batch_size = 128").replace("ffn = 16", "ffn = 16\ndropout = 0.2")
    )
    recipe = f"epochs = {EPOCHS}\nlearning_rate = 0.03\npatience = 4\nunknown_rate = 0.1"
    toml.write_text(text.replace("epochs = 2", recipe))
    train(read_experiment(toml), root, root / "whole")
    return root


CHILD = """
import os, signal, sys
from pathlib import Path
from model.experiment_config import read_experiment
from model.training.progress import EpochTable
from model.experiments.run_registry import RUNS, RunList
from model.experiments.seeds import RunContext, run_missing
from model.experiments.trial import open_log

root, evaluations = Path(sys.argv[1]), int(sys.argv[2])
experiment = read_experiment(root / "experiments" / "tiny.toml")

class Killed(EpochTable):
    finished = rows = 0

    def on_epoch(self, epoch):
        self.finished += 1

    def on_rows(self, rows):
        self.rows += rows if self.finished == evaluations else 0
        if self.rows > 2 * experiment.training.batch_size:
            os.kill(os.getpid(), signal.SIGKILL)

place = RunContext(open_log(experiment.data, root), RunList(root / RUNS), root)
run_missing([experiment], place, Killed)
"""


@pytest.fixture(scope="module")
def averaged(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder whose experiment averages weights and evaluates them three times per epoch."""
    copy = tmp_path_factory.mktemp("averaged") / "root"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("whole", UNFINISHED))
    toml = copy / "experiments" / "tiny.toml"
    keys = "ema_half_life = 0.5\nema_min_steps = 2\nweights = 'averaged'\nevaluations_per_epoch = 3\n"
    toml.write_text(toml.read_text().replace("learning_rate = 0.03\n", f"learning_rate = 0.1\n{keys}"))
    train(read_experiment(toml), copy, copy / "whole")
    return copy


@pytest.mark.parametrize(("folder", "evaluations"), [("root", 1), ("root", 3), ("averaged", 2), ("averaged", 4)])
def test_a_run_killed_in_the_middle_of_an_epoch_ends_with_the_same_weights(
    folder: str, tmp_path: Path, evaluations: int, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(folder)
    killed = subprocess.run([sys.executable, "-c", CHILD, root, str(evaluations)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((root / UNFINISHED).glob("*.safetensors"))) == 1
    train(read_experiment(root / "experiments" / "tiny.toml"), root, tmp_path / "run")
    assert "training starts from the first epoch" not in capsys.readouterr().err
    whole, resumed = load_file(root / "whole" / WEIGHTS), load_file(tmp_path / "run" / WEIGHTS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    (*_, before), (*_, after) = open_run(root / "whole"), open_run(tmp_path / "run")
    assert [e.loss for e in before.history] == [e.loss for e in after.history]
    assert [(e.end, e.valid, e.other_valid) for e in before.history] == [
        (e.end, e.valid, e.other_valid) for e in after.history
    ]
    assert (before.valid, before.test, before.other) == (after.valid, after.test, after.other)
    assert list((root / UNFINISHED).iterdir()) == []


def test_the_learning_rate_of_the_run_decreases_so_that_its_loss_would_be_detected(root: Path) -> None:
    *_, metrics = open_run(root / "whole")
    assert len({e.learning_rate for e in metrics.history}) > 1


def finished_epochs(path: Path, run: str, experiment: Experiment, model: STEC | None = None) -> list[Epoch]:
    model = model or stec()
    state = State(model, torch.optim.Adam(model.parameters()), torch.Generator(), EarlyStopping(experiment.training))
    return Checkpoint(path, run).restore(state)


@pytest.fixture
def checkpoint(root: Path, tmp_path: Path) -> Path:
    recipe = trained_with(read_experiment(root / "experiments" / "tiny.toml"), epochs=1).training
    path, model = tmp_path / "run.safetensors", stec()
    rows = clicks_of_pairs(600, 1), clicks_of_pairs(300, 2)
    fit(model, embedding_parameters(model), *rows, recipe, checkpoint=Checkpoint(path, "this run"))
    return path


@pytest.fixture
def experiment(root: Path) -> Experiment:
    return read_experiment(root / "experiments" / "tiny.toml")


def test_a_checkpoint_of_this_run_is_restored(checkpoint: Path, experiment: Experiment) -> None:
    assert len(finished_epochs(checkpoint, "this run", experiment)) == 1


def test_a_checkpoint_of_version_0_9_is_restored(checkpoint: Path, experiment: Experiment) -> None:
    """It has no keys about averages and parts of epochs."""
    with safe_open(checkpoint, framework="pt") as file:
        progress = json.loads(file.metadata()[PROGRESS])
    del progress["averaged_steps"], progress["other_score"]
    for epoch in progress["history"]:
        del epoch["part"], epoch["other_valid"], epoch["other_improved"]
    save_file(load_file(checkpoint), checkpoint, metadata={PROGRESS: json.dumps(progress)})
    (epoch,) = finished_epochs(checkpoint, "this run", experiment)
    assert epoch.end == 1


def test_a_checkpoint_of_another_run_is_ignored_with_a_message(
    checkpoint: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished_epochs(checkpoint, "another run", experiment) == []
    assert "other settings or data; training starts from the first epoch" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_broken_checkpoint_is_ignored_with_a_message(
    checkpoint: Path, experiment: Experiment, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(len(whole) * share)])
    assert finished_epochs(checkpoint, "this run", experiment) == []
    assert "the checkpoint is broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["model/head.0.weight", "best/head.0.weight", "adam/0/exp_avg", "adam/0/step", "generator"]
)
@pytest.mark.parametrize("change", ["shape", "name"])
def test_a_checkpoint_of_another_model_is_ignored_and_the_model_is_unchanged(
    checkpoint: Path, experiment: Experiment, name: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(checkpoint)
    tensors[name if change == "shape" else f"{name}x"] = torch.zeros(2, 3, 4)
    if change == "name":
        del tensors[name]
    save_file(tensors, checkpoint, metadata=metadata)
    model, before = stec(), stec().state_dict()
    assert finished_epochs(checkpoint, "this run", experiment, model) == []
    assert "the tensors of another model" in capsys.readouterr().err
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("stale", ["another experiment", "broken"])
def test_a_run_that_ignores_its_checkpoint_starts_at_the_click_rate(root: Path, tmp_path: Path, stale: str) -> None:
    """The same run with and without a checkpoint that cannot be restored gives the same model."""
    experiment = trained_with(read_experiment(root / "experiments" / "tiny.toml"), epochs=1)
    log = open_log(experiment.data, root)
    losses = []
    for name in ("clean", "stale"):
        path = tmp_path / f"{name}.safetensors"
        if name == "stale" and stale == "broken":
            path.write_bytes(b"broken")
        elif name == "stale":
            other = trained_with(experiment, learning_rate=0.001)
            run_trial(other, log, Checkpoint(path, "another experiment"), EpochTable(other, 1))
        _, metrics = run_trial(experiment, log, Checkpoint(path, "this run"), EpochTable(experiment, 1))
        losses.append([epoch.loss for epoch in metrics.history])
    assert losses[0] == losses[1]


def test_different_data_has_a_different_fingerprint(root: Path, tmp_path: Path) -> None:
    experiment = read_experiment(root / "experiments" / "tiny.toml")
    shutil.copytree(root / "prepared", tmp_path / "prepared")
    same = open_log(experiment.data, tmp_path).facts
    assert same == open_log(experiment.data, root).facts
    labels = tmp_path / "prepared" / "valid.labels.npy"
    content = bytearray(labels.read_bytes())
    content[-1] ^= 1
    labels.write_bytes(content)
    assert open_log(experiment.data, tmp_path).facts.fingerprint != same.fingerprint
