"""The run folder: what training leaves, whole, for the exporter and the report.

experiment.json  every setting, spelt out           weights.safetensors  the best epoch's
schema.json, vocabulary/   what the ids mean        metrics.json         history, valid, test
versions.json    python, libraries, machine         curve.png            the learning curve
"""

import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import msgspec
import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from contract.bundle import SCHEMA, VOCABULARY
from contract.schema import FeatureSchema, read_schema, write_schema
from contract.vocabulary import open_vocabulary
from model.experiment import Experiment
from model.fit import Epoch
from model.metrics import Metrics
from model.stec import STEC, stec_for

EXPERIMENT = "experiment.json"
WEIGHTS = "weights.safetensors"
METRICS = "metrics.json"
VERSIONS = "versions.json"
LIBRARIES = ("torch", "numpy", "polars", "scikit-learn", "msgspec")


class RunMetrics(msgspec.Struct, frozen=True):
    """What a run measured. valid and test are those of the best epoch; seconds: training without evaluation."""

    seed: int
    parameters: int
    best_epoch: int
    seconds: float
    valid: Metrics
    test: Metrics
    history: list[Epoch]


def write_run(
    folder: Path,
    experiment: Experiment,
    model: STEC,
    schema: FeatureSchema,
    vocabulary: Path,
    metrics: RunMetrics,
) -> None:
    """Fills an empty folder; model.folder.new_folder makes it appear whole."""
    (folder / EXPERIMENT).write_bytes(msgspec.json.format(msgspec.json.encode(experiment)) + b"\n")
    save_file(model.state_dict(), folder / WEIGHTS)
    write_schema(schema, folder / SCHEMA)
    shutil.copytree(vocabulary, folder / VOCABULARY)
    (folder / METRICS).write_bytes(msgspec.json.format(msgspec.json.encode(metrics)) + b"\n")
    (folder / VERSIONS).write_bytes(msgspec.json.format(msgspec.json.encode(versions())) + b"\n")
    draw_curve(metrics.history, folder / "curve.png")


def open_run(folder: Path) -> tuple[STEC, Experiment, FeatureSchema, RunMetrics]:
    """The trained model in evaluation mode, and what it was trained from.

    Raises:
        ValueError: when the folder is no run, or its files do not belong together.
    """
    if not (folder / METRICS).is_file():
        raise ValueError(f"{folder} is no run (it has no {METRICS}): make one with ctr-train EXPERIMENT.toml --out RUN")
    try:
        experiment = msgspec.json.decode((folder / EXPERIMENT).read_bytes(), type=Experiment)
        metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=RunMetrics)
        schema = read_schema(folder / SCHEMA)
        sizes = [len(open_vocabulary(folder / VOCABULARY, f.name)) for f in schema.select("categorical")]
        model = stec_for(schema, sizes, experiment.model)
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: its files do not belong together ({error}): train again") from error
    return model.eval(), experiment, schema, metrics


def versions() -> dict[str, str | int]:
    """What a number depends on besides the code."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def draw_curve(history: Sequence[Epoch], path: Path) -> None:
    """Loss, valid logloss and valid AUC over the epochs."""
    mpl.use("agg")
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    epochs = [e.epoch for e in history]
    losses.plot(epochs, [e.loss for e in history], label="train loss")
    losses.plot(epochs, [e.valid.logloss for e in history], label="valid logloss")
    losses.set(xlabel="epoch", ylabel="logloss")
    aucs = losses.twinx()
    aucs.plot(epochs, [e.valid.auc for e in history], "k--", label="valid AUC")
    aucs.set(ylabel="AUC")
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)
