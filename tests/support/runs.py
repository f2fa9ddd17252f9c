"""Small logs, experiments on these logs, and runs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.data.prepare.prepare import prepare
from model.data.synthetic import generate
from model.data_config import Data
from model.experiment_config import Experiment, Training, read_experiment
from model.experiments.run_folder import DIGESTS, WEIGHTS, DataFacts, RunMetrics
from model.experiments.run_registry import FinishedRun, digest
from model.stec.stec import STECConfig
from model.training.metrics import Metrics

DATA = Data(reader="generated", folder="generated", prepared="prepared", negative_rate=0.5)
# A log with a numeric field on each side, in three CSV files.
NUMBERS = Data(
    reader="table",
    folder=".",
    prepared="prepared",
    train="train.csv",
    valid="valid.csv",
    test="test.csv",
    label="click",
    context=("place", "depth"),
    candidate=("ad", "bid"),
    numeric=("depth", "bid"),
)
FRAPPE = Data(reader="frappe", folder="frappe", prepared="prepared/frappe")
FACTS = DataFacts({"train": 10, "valid": 2, "test": 2}, "f00d")
TINY = "experiments/tiny.toml"
TOML = """
name = "tiny"
[data]
reader = "generated"
folder = "generated"
prepared = "prepared"
[model]
embedding = 8
blocks = 1
ffn = 16
[training]
epochs = 2
batch_size = 512
"""


def make_root(root: Path, requests: int = 1500) -> Path:
    """Create a data folder with a prepared log and the experiment TINY, and return it."""
    write_tiny(root)
    assert generate.main(["--data", str(root), "--requests", str(requests)]) == 0
    prepare(root, read_experiment(root / TINY).data)
    return root


def write_tiny(root: Path) -> None:
    """Write the experiment TINY to a data folder."""
    toml = root / TINY
    toml.parent.mkdir(parents=True)
    toml.write_text(TOML)


def trained_with(experiment: Experiment, **changes: object) -> Experiment:
    training: Training = msgspec.structs.replace(experiment.training, **changes)
    return msgspec.structs.replace(experiment, training=training)


def copy_to_change(run: Path, copy: Path) -> None:
    """Copy a run without its digests, so that changes to the copy are not detected."""
    shutil.copytree(run, copy)
    (copy / DIGESTS).unlink()


def with_weights(run: Path, copy: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Copy a run, apply `change` to the copy's weights, and return the copy."""
    copy_to_change(run, copy)
    save_file(change(load_file(run / WEIGHTS)), copy / WEIGHTS)
    return copy


def with_first_level_only(run: Path, copy: Path) -> Path:
    """Copy a run, and scale the head's weights for all levels but the first to 1%, so that a cascade is possible."""

    def weaken(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        head = weights["head.0.weight"].clone()
        head[:, head.shape[1] // 3 :] *= 0.01
        return weights | {"head.0.weight": head}

    return with_weights(run, copy, weaken)


def experiment(seed: int, **model: float | str) -> Experiment:
    return Experiment(name="x", data=FRAPPE, model=STECConfig(**model), training=Training(seed=seed))  # type: ignore[arg-type]


def run(seed: int, **model: float | str) -> FinishedRun:
    of = experiment(seed, **model)
    metrics = RunMetrics(
        seed=seed, parameters=1, best_epoch=1, seconds=1.0, valid=Metrics(0.7, 0.3), test=Metrics(0.6, 0.4), history=[]
    )
    return FinishedRun(digest(of), of, FACTS, metrics, {"torch": "2"}, "2026-01-01T00:00:00+00:00")
