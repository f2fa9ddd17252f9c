"""A small generated log, prepared, and experiments on it."""

from pathlib import Path

import msgspec

from model.data.prepare.prepare import prepare
from model.data.synthetic import generate
from model.experiment_config import Experiment, Training, read_experiment

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
    """Make a data folder with a prepared log and TINY, and return it."""
    toml = root / TINY
    toml.parent.mkdir(parents=True)
    toml.write_text(TOML)
    assert generate.main(["--data", str(root), "--requests", str(requests)]) == 0
    prepare(root, read_experiment(toml).data)
    return root


def trained_with(experiment: Experiment, **changes: object) -> Experiment:
    training: Training = msgspec.structs.replace(experiment.training, **changes)
    return msgspec.structs.replace(experiment, training=training)
