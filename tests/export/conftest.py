"""A small run made by the real pipeline: generated log, prepare, two epochs."""

from pathlib import Path

import pytest

from model.data import generate
from model.data.prepare import prepare
from model.experiment import Data, Experiment, Model, Training
from model.train import train

DATA = Data(reader="generated", folder="generated", prepared="prepared", negative_rate=0.5)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipeline")
    assert generate.main(["--data", str(root), "--requests", "1500", "--seed", "3"]) == 0
    prepare(root, DATA)
    experiment = Experiment(
        name="small",
        data=DATA,
        model=Model(embedding=8, blocks=2, heads=2, ffn=16, embedding_std=0.1),
        training=Training(epochs=2, batch_size=256, learning_rate=0.01),
    )
    train(experiment, root, root / "run")
    return root / "run"
