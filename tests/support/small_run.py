"""A small run and its bundles, built by the real pipeline. tests/conftest.py shares them as fixtures."""

from pathlib import Path

from export.bundle import export
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import read_prepared
from model.data.synthetic import generate
from model.experiment_config import Experiment, Training
from model.experiments.train import train
from model.stec.stec import STECConfig
from tests.support.runs import DATA


def write_run(root: Path) -> None:
    """Write a generated log, prepare it, and train a small STEC for two epochs. The run is the folder "run"."""
    assert generate.main(["--data", str(root), "--requests", "1500", "--seed", "3"]) == 0
    prepare(root, DATA)
    experiment = Experiment(
        name="small",
        data=DATA,
        model=STECConfig(embedding=8, blocks=2, heads=2, ffn=16, embedding_std=0.1),
        training=Training(epochs=2, batch_size=256, learning_rate=0.01),
    )
    train(experiment, root, root / "run")


def write_bundle(run: Path, folder: Path) -> None:
    """Export a run without its log."""
    export(run, folder)


def write_cascade_bundle(run: Path, folder: Path, root: Path) -> None:
    """Export a run with a cascade that is calibrated on the log in `root`."""
    export(run, folder, read_prepared(root / DATA.prepared))
