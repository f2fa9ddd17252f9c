"""Runs and bundles that tests share, built by the real pipeline, and hypothesis profiles."""

import gc
from pathlib import Path

import pytest
from hypothesis import settings
from torch import Tensor

from export.bundle import export
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import read_prepared
from model.data.synthetic import generate
from model.experiment_config import Experiment, Training
from model.experiments.train import train
from model.stec.stec import STECConfig
from tests.support.runs import DATA, with_weights
from tests.support.sharing import made_once, session_folder

# No deadline, because tests must not fail on a busy machine. `--hypothesis-profile full` replaces "default".
settings.register_profile("default", deadline=None)
settings.register_profile("full", deadline=None, max_examples=1000)
settings.load_profile("default")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """When only timing tests run, skip modules that have none, because importing every module takes long."""
    if config.option.markexpr.startswith("timing") and collection_path.name.startswith("test_"):
        return "mark.timing" not in collection_path.read_text() or None
    return None


def pytest_collection_finish() -> None:
    # Objects created so far live as long as the process, so the garbage collector does not have to scan them.
    gc.freeze()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test workers share."""
    return session_folder(tmp_path_factory)


@pytest.fixture(scope="session")
def run_folder(shared_folder: Path) -> Path:
    """A small STEC run: two epochs on a prepared generated log. Shared: do not change it."""

    def make(root: Path) -> None:
        assert generate.main(["--data", str(root), "--requests", "1500", "--seed", "3"]) == 0
        prepare(root, DATA)
        experiment = Experiment(
            name="small",
            data=DATA,
            model=STECConfig(embedding=8, blocks=2, heads=2, ffn=16, embedding_std=0.1),
            training=Training(epochs=2, batch_size=256, learning_rate=0.01),
        )
        train(experiment, root, root / "run")

    return made_once(shared_folder / "pipeline", make) / "run"


@pytest.fixture(scope="session")
def bundle_folder(shared_folder: Path, run_folder: Path) -> Path:
    """The small run's bundle, exported without its log. Shared: do not change it."""
    return made_once(shared_folder / "bundle", lambda folder: export(run_folder, folder))


@pytest.fixture(scope="session")
def first_level_run(shared_folder: Path, run_folder: Path) -> Path:
    """The small run, with the head's weights for all levels but the first scaled to 1%. Shared: do not change it."""

    def weaken(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        head = weights["head.0.weight"].clone()
        head[:, head.shape[1] // 3 :] *= 0.01
        return weights | {"head.0.weight": head}

    return made_once(shared_folder / "first-level-run", lambda folder: with_weights(run_folder, folder, weaken))


@pytest.fixture(scope="session")
def cascade_bundle(shared_folder: Path, run_folder: Path, first_level_run: Path) -> Path:
    """The bundle of `first_level_run`, with a cascade calibrated on its log. Shared: do not change it."""
    prepared = read_prepared(run_folder.parent / DATA.prepared)
    return made_once(shared_folder / "cascade-bundle", lambda folder: export(first_level_run, folder, prepared))
