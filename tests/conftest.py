"""A small run made by the real pipeline: generated log, prepare, two epochs; and one that its first level decides."""

from pathlib import Path

import pytest
from hypothesis import settings
from torch import Tensor

from model.data.prepare.prepare import prepare
from model.data.synthetic import generate
from model.experiment_config import Experiment, Training
from model.experiments.train import train
from model.stec.stec import STECConfig
from tests.support.runs import DATA, with_weights

# A busy machine is no reason for a test to fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipeline")
    assert generate.main(["--data", str(root), "--requests", "1500", "--seed", "3"]) == 0
    prepare(root, DATA)
    experiment = Experiment(
        name="small",
        data=DATA,
        model=STECConfig(embedding=8, blocks=2, heads=2, ffn=16, embedding_std=0.1),
        training=Training(epochs=2, batch_size=256, learning_rate=0.01),
    )
    train(experiment, root, root / "run")
    return root / "run"


@pytest.fixture(scope="session")
def first_level_run(run_folder: Path) -> Path:
    """The other levels' weights in the head are a hundredth."""

    def weaken(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        head = weights["head.0.weight"].clone()
        head[:, head.shape[1] // 3 :] *= 0.01
        return weights | {"head.0.weight": head}

    return with_weights(run_folder, run_folder.parent / "first-level-run", weaken)
