"""A run whose valid has enough clicks for a calibration."""

from pathlib import Path

import pytest

from tests.support.sharing import made_once


def write_root(root: Path) -> None:
    """Write a generated log, prepare it, and train a small STEC on it. The run is the folder "run"."""
    from model.data.prepare.prepare import prepare
    from model.data.synthetic import generate
    from model.data_config import Data
    from model.experiment_config import Experiment, Training
    from model.experiments.train import train
    from model.stec.stec import STECConfig

    assert generate.main(["--data", str(root), "--rows", "20000", "12000", "10000", "--seed", "3"]) == 0
    data = Data(reader="generated", folder="generated", prepared="prepared")
    prepare(root, data)
    model = STECConfig(embedding=4, blocks=1, heads=2, ffn=8, embedding_std=0.1)
    training = Training(epochs=1, batch_size=512, learning_rate=0.01)
    train(Experiment(name="calibrate", data=data, model=model, training=training), root, root / "run")


@pytest.fixture(scope="session")
def trained(shared_folder: Path) -> Path:
    """A data folder with a run, "run", and its log. Shared: do not change it."""
    return made_once(shared_folder / "calibrate", write_root)
