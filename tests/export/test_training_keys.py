"""`position` and `train_negative_rate` change only the training: the bundle is that of a run with the same weights."""

from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from contract.bundle import MANIFEST, open_bundle
from contract.calibration import Calibration
from export.bundle import export
from model.data.prepare.prepare import prepare
from model.data_config import Data
from model.experiment_config import Experiment, Training
from model.experiments.run_folder import open_run, save_run
from model.experiments.train import train
from model.stec.stec import STECConfig

ROWS = 2000


def write_log(root: Path) -> None:
    for seed, split in enumerate(("train", "valid", "test")):
        random = np.random.default_rng(seed)
        position = random.integers(0, 3, ROWS)
        frame = pl.DataFrame(
            {
                "place": random.choice(["top", "side", "end"], ROWS),
                "ad": random.integers(0, 30, ROWS),
                "bid": random.random(ROWS),
                "position": position,
                "click": (random.random(ROWS) < 0.3 / (1 + position)).astype(np.int8),
            }
        )
        frame.write_parquet(root / f"{split}.parquet")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_does_not_depend_on_keys_that_only_training_uses(tmp_path: Path) -> None:
    write_log(tmp_path)
    files = {split: f"{split}.parquet" for split in ("train", "valid", "test")}
    plain = Data(
        reader="table",
        folder=".",
        prepared="prepared",
        label="click",
        context=("place",),
        candidate=("ad", "bid"),
        numeric=("bid",),
        **files,  # type: ignore[arg-type]
    )
    data = msgspec.structs.replace(plain, position="position", train_negative_rate=0.5)
    prepared = prepare(tmp_path, data)
    model = STECConfig(embedding=4, blocks=1, heads=1, ffn=8)
    experiment = Experiment(name="shop", data=data, model=model, training=Training(epochs=1, batch_size=200))
    metrics = train(experiment, tmp_path, tmp_path / "run")
    assert [effect.position for effect in metrics.positions] == [0, 1, 2]
    trained, _, schema, _ = open_run(tmp_path / "run")
    without = msgspec.structs.replace(experiment, data=plain)
    unchanged = msgspec.structs.replace(metrics, positions=[])
    save_run(tmp_path / "plain", without, trained, schema, prepared.vocabulary, unchanged)
    for run in ("run", "plain"):
        export(tmp_path / run, tmp_path / f"{run}-bundle")
    found, expected = contents(tmp_path / "run-bundle"), contents(tmp_path / "plain-bundle")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name] and name != MANIFEST] == []
    manifests = [open_bundle(tmp_path / f"{run}-bundle").manifest for run in ("run", "plain")]
    assert manifests[0].version == manifests[1].version
    assert manifests[0].calibration == Calibration()  # there is nothing to correct
