"""The run folder: what training leaves, whole, for the exporter and the report.

experiment.json  every setting, spelt out           weights.safetensors  the best epoch's
schema.json, vocabulary/   what the ids mean        metrics.json         history, valid, test
versions.json    python, libraries, machine         data.json            which rows it learnt from
curve.png        the learning curve             digests.json         sha256 of those that a model is opened from

Files of a run that was made before a number was measured lack it: None, or an empty list.
"""

import hashlib
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from contract.bundle import SCHEMA, VOCABULARY
from contract.schema import FeatureSchema, read_schema, write_schema
from contract.vocabulary import open_vocabulary
from model.atomic_folder import new_folder
from model.data.prepare.prepared import Prepared
from model.experiment_config import Experiment, to_experiment
from model.experiments.plots import draw_curves
from model.layers import fields_of
from model.stec import fused
from model.training.device import cpu_name, device_of
from model.training.early_stopping import Epoch
from model.training.metrics import Bin, Metrics
from model.training.true_ctr import TrueComparison
from model.zoo import build

EXPERIMENT = "experiment.json"
WEIGHTS = "weights.safetensors"
METRICS = "metrics.json"
VERSIONS = "versions.json"
DATA = "data.json"
DIGESTS = "digests.json"
LIBRARIES = ("torch", "numpy", "polars", "scikit-learn", "msgspec")


class DataFacts(msgspec.Struct, frozen=True):
    """rows: of each split. fingerprint: sha256 over the prepared files."""

    rows: dict[str, int]
    fingerprint: str


class RunMetrics(msgspec.Struct, frozen=True):
    """What a run measured. valid, test and reliability (of test) are those of the best epoch.

    seconds, rows_per_s: training without evaluation; wall_s: with it. flops: of one row (model/training/flops.py).
    truth: for a generated log.
    """

    seed: int
    parameters: int
    best_epoch: int
    seconds: float
    valid: Metrics
    test: Metrics
    history: list[Epoch]
    flops: int | None = None
    rows_per_s: float | None = None
    reliability: list[Bin] = []
    truth: TrueComparison | None = None
    wall_s: float | None = None


def save_run(
    out: Path,
    experiment: Experiment,
    model: nn.Module,
    schema: FeatureSchema,
    vocabulary: Path,
    metrics: RunMetrics,
    data: DataFacts | None = None,
) -> None:
    """Makes `out` a run folder, whole or not at all, in the place of an older run.

    Raises:
        OSError: naming the folder, when it cannot be written, as on a full disk.
    """
    try:
        with new_folder(out, METRICS) as folder:
            write_run(folder, experiment, model, schema, vocabulary, metrics)
            if data is not None:
                (folder / DATA).write_bytes(msgspec.json.format(msgspec.json.encode(data)) + b"\n")
    except (OSError, SafetensorError) as error:
        raise OSError(f"{out}: the run could not be written, and nothing of it is left ({error})") from error


def write_run(
    folder: Path,
    experiment: Experiment,
    model: nn.Module,
    schema: FeatureSchema,
    vocabulary: Path,
    metrics: RunMetrics,
) -> None:
    """Fills an empty folder."""
    (folder / EXPERIMENT).write_bytes(msgspec.json.format(msgspec.json.encode(experiment)) + b"\n")
    save_file(model.state_dict(), folder / WEIGHTS)
    write_schema(schema, folder / SCHEMA)
    shutil.copytree(vocabulary, folder / VOCABULARY)
    (folder / METRICS).write_bytes(msgspec.json.format(msgspec.json.encode(metrics)) + b"\n")
    (folder / VERSIONS).write_bytes(msgspec.json.format(msgspec.json.encode(versions(model))) + b"\n")
    (folder / DIGESTS).write_bytes(msgspec.json.format(msgspec.json.encode(_digests(folder))) + b"\n")
    draw_curves([metrics.history], folder / "curve.png")


def open_run(folder: Path) -> tuple[nn.Module, Experiment, FeatureSchema, RunMetrics]:
    """The trained model in evaluation mode, and what it was trained from.

    Raises:
        ValueError: when the folder is no run, or its files do not belong together.
    """
    if not (folder / METRICS).is_file():
        raise ValueError(f"{folder} is no run (it has no {METRICS}): make one with ctr-train EXPERIMENT.toml --out RUN")
    try:
        _check_digests(folder)
        experiment = _experiment_of(folder)
        metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=RunMetrics)
        schema = read_schema(folder / SCHEMA)
        sizes = [len(open_vocabulary(folder / VOCABULARY, f.name)) for f in schema.select("categorical")]
        model = build(fields_of(schema, sizes), experiment.model)
        model.load_state_dict(load_file(folder / WEIGHTS))
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise ValueError(f"{WEIGHTS} has weights that are not finite")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split("\n\t")[:2])  # torch goes on with every parameter's name
        raise ValueError(f"{folder}: its files do not belong together ({reason}): train again") from error
    return model.eval(), experiment, schema, metrics


def check_log_of_run(run: Path, prepared: Prepared) -> None:
    """Raises ValueError when the log's ids do not mean what they meant when the run was trained."""
    schema = read_schema(run / SCHEMA)
    experiment = _experiment_of(run)
    same = prepared.schema == schema and prepared.facts.data == experiment.data
    if not same or _contents(prepared.vocabulary) != _contents(run / VOCABULARY):
        raise ValueError(f"{prepared.folder} is not the log that {run} was trained on: prepare and train again")


def _experiment_of(run: Path) -> Experiment:
    return to_experiment(msgspec.json.decode((run / EXPERIMENT).read_bytes(), type=dict[str, Any]))


def _digests(run: Path) -> dict[str, str]:
    files = [run / name for name in (EXPERIMENT, WEIGHTS, SCHEMA, METRICS)] + sorted((run / VOCABULARY).iterdir())
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _check_digests(run: Path) -> None:
    """Raises ValueError when a file was changed since the run was written; older runs have no digests."""
    if not (run / DIGESTS).is_file():
        return
    expected, found = msgspec.json.decode((run / DIGESTS).read_bytes(), type=dict[str, str]), _digests(run)
    if changed := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ValueError(f"{changed[0]} is not what training wrote")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


def data_of(folder: Path) -> DataFacts | None:
    """None for a run that was made before it was written down. Raises ValueError, naming the file, when broken."""
    if not (path := folder / DATA).is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=DataFacts)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}: train again") from error


def versions(model: nn.Module) -> dict[str, str | int]:
    """What a number depends on besides the code. A GPU is told when the model is there."""
    device = device_of(model)
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "kernel": "yes" if device.type == "cpu" and fused.is_there() else "no",
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        **gpu,
    }
