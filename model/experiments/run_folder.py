"""The run folder, which training writes and the exporter and the report read.

experiment.json  all settings, including defaults   weights.safetensors  the best weights
schema.json, vocabulary/   the meaning of the ids   metrics.json         history, valid, test
versions.json    python, libraries, machine         data.json            the rows used for training
curve.png        the learning curve                 digests.json         sha256 of the files that open_run() reads

If a run is older than a metric, the metric is None or an empty list.
"""

import hashlib
import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from contract.bundle import SCHEMA, VOCABULARY
from contract.schema import FeatureSchema, read_schema, write_schema
from contract.system_errors import explain_denied
from contract.vocabulary import open_vocabulary
from model.atomic_folder import new_folder
from model.data.prepare.prepared import Prepared
from model.data_config import first_difference
from model.experiment_config import Experiment, to_experiment, with_stored_defaults
from model.experiments.plots import draw_curves
from model.experiments.quality import UnseenValues
from model.experiments.run_check import METRICS, check_run
from model.layers import fields_of
from model.stec import fused
from model.training.device import cpu_name, device_of
from model.training.early_stopping import Epoch, epoch_text
from model.training.metrics import Bin, Metrics
from model.training.position import PositionEffect
from model.training.true_ctr import TrueComparison
from model.zoo import build

EXPERIMENT = "experiment.json"
WEIGHTS = "weights.safetensors"
VERSIONS = "versions.json"
DATA = "data.json"
DIGESTS = "digests.json"
LIBRARIES = ("torch", "numpy", "polars", "scikit-learn", "msgspec")


class WarmFacts(msgspec.Struct, frozen=True):
    """What a run records about the earlier run that its weights started from.

    Attributes:
        run: A sha256 of the earlier run's files.
        tokens: The number of tokens of all fields.
        new_tokens: The number of tokens that the earlier run did not have. They started from the row of the unknown id.
        lost_tokens: The number of tokens that only the earlier run had. Their embeddings were not copied.
    """

    run: str
    tokens: int
    new_tokens: int
    lost_tokens: int = 0


class DataFacts(msgspec.Struct, frozen=True):
    """The data that a run was trained on.

    Attributes:
        rows: The number of rows in each split.
        fingerprint: A sha256 of the prepared files.
        warm: The run that the weights started from, or None.
        periods: The times of the oldest and the newest row of each split in UTC, if the log is split by time.
    """

    rows: dict[str, int]
    fingerprint: str
    warm: WarmFacts | None = None
    periods: dict[str, tuple[str, str]] = {}


class OtherWeights(msgspec.Struct, frozen=True):
    """The best of the weights that Training.weights does not select, in a run with an average.

    Attributes:
        weights: Which weights they are.
        best_epoch: As in RunMetrics.
        best_part: As in RunMetrics.
        valid: The metrics on the validation set.
        test: The metrics on the test set.
    """

    weights: Literal["raw", "averaged"]
    best_epoch: int
    best_part: float
    valid: Metrics
    test: Metrics

    @property
    def best(self) -> str:
        """As in RunMetrics."""
        return epoch_text(self.best_epoch - 1 + self.best_part)


class RunMetrics(msgspec.Struct, frozen=True):
    """The metrics of a run. valid, test and reliability are measured with the best weights.

    Attributes:
        seed: The seed.
        parameters: The number of model parameters.
        best_epoch: The epoch whose weights were kept, or 0 for the weights that a warm run started from.
        seconds: The training time in seconds, excluding evaluations.
        valid: The metrics on the validation set.
        test: The metrics on the test set.
        history: All evaluations, which are one per epoch by default.
        flops: The FLOPs per row (see model/training/flops.py).
        rows_per_s: The training speed in rows per second, excluding evaluations.
        reliability: Predictions and click rates on the test set, in bins.
        truth: The comparison with the true probabilities, if the log is synthetic.
        wall_s: The training time in seconds, including evaluations.
        unseen: The quality on test rows with unseen values, for each group in Training.hide.
        warnings: Why the model may not be worth serving (see model/experiments/quality.py).
        best_part: The share of the best epoch that was trained when its weights were kept.
        other: The other weights, if two were evaluated (Training.ema_half_life).
        positions: The effects of the positions on the logit in training (Data.position). `valid`, `test` and the
            weights are without them, but `history` is with them.
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
    unseen: list[UnseenValues] = []
    warnings: list[str] = []
    best_part: float = 1.0
    other: OtherWeights | None = None
    positions: list[PositionEffect] = []

    @property
    def best(self) -> str:
        """The number of epochs after which the weights were kept, such as 3 or 2.33."""
        return epoch_text(self.best_epoch - 1 + self.best_part)

    @property
    def epochs(self) -> float:
        """The number of epochs that were trained."""
        return self.history[-1].end if self.history else 0.0


def save_run(
    out: Path,
    experiment: Experiment,
    model: nn.Module,
    schema: FeatureSchema,
    vocabulary: Path,
    metrics: RunMetrics,
    data: DataFacts | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a run folder atomically. An existing run is replaced. `files` are additional files by name.

    Raises:
        OSError: If the folder cannot be written, for example because the disk is full.
    """
    try:
        with new_folder(out, METRICS) as folder:
            write_run(folder, experiment, model, schema, vocabulary, metrics)
            if data is not None:
                write_json(folder / DATA, data)
            for name, content in (files or {}).items():
                (folder / name).write_bytes(content)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{out}: the run could not be written, and the partial output was removed ({error})") from error


def write_run(
    folder: Path,
    experiment: Experiment,
    model: nn.Module,
    schema: FeatureSchema,
    vocabulary: Path,
    metrics: RunMetrics,
) -> None:
    """Write the files of a run to an empty folder."""
    write_json(folder / EXPERIMENT, experiment)
    save_file(model.state_dict(), folder / WEIGHTS)
    write_schema(schema, folder / SCHEMA)
    shutil.copytree(vocabulary, folder / VOCABULARY)
    write_json(folder / METRICS, metrics)
    write_json(folder / VERSIONS, versions(model))
    write_json(folder / DIGESTS, file_digests(folder))
    draw_curves([metrics.history], folder / "curve.png")


def write_json(path: Path, content: Any) -> None:
    """Write a value as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")


def open_run(folder: Path) -> tuple[nn.Module, Experiment, FeatureSchema, RunMetrics]:
    """Return the trained model (in evaluation mode), its experiment, its schema and its metrics.

    Raises:
        ValueError: If the folder is not a run, or has changed since training.
    """
    check_run(folder)
    try:
        check_digests(folder)
        experiment = read_run_experiment(folder)
        metrics = msgspec.json.decode((folder / METRICS).read_bytes(), type=RunMetrics)
        schema = read_schema(folder / SCHEMA)
        sizes = [len(open_vocabulary(folder / VOCABULARY, f.name)) for f in schema.select("categorical")]
        model = build(fields_of(schema, sizes), experiment.model)
        with (folder / WEIGHTS).open("rb"):  # safetensors reports a file that may not be read as missing.
            model.load_state_dict(load_file(folder / WEIGHTS))
        if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
            raise ValueError(f"{WEIGHTS} has weights that are not finite")
    except PermissionError as error:
        raise ValueError(explain_denied(Path(error.filename or folder))) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split("\n\t")[:2])  # torch's message goes on to list every parameter
        raise ValueError(f"{folder}: its files do not belong together ({reason}). Train again.") from error
    return model.eval(), experiment, schema, metrics


def check_log_of_run(run: Path, prepared: Prepared) -> None:
    """Check that a log's ids still have the same meaning as when the run was trained.

    Raises:
        ValueError: If their meaning has changed.
    """
    difference = first_difference(prepared.facts.data, read_run_experiment(run).data)
    same = prepared.schema == read_schema(run / SCHEMA) and difference is None
    vocabularies = [
        {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}
        for folder in (prepared.vocabulary, run / VOCABULARY)
    ]
    if not same or vocabularies[0] != vocabularies[1]:
        raise ValueError(f"{prepared.folder} is not the log that {run} was trained on. Prepare and train again.")


def read_run_experiment(run: Path) -> Experiment:
    """Read the experiment of a run."""
    document = msgspec.json.decode((run / EXPERIMENT).read_bytes(), type=dict[str, Any])
    return to_experiment(with_stored_defaults(document))


def file_digests(run: Path) -> dict[str, str]:
    """Return the sha256 of each file that open_run() reads."""
    files = [run / name for name in (EXPERIMENT, WEIGHTS, SCHEMA, METRICS)] + sorted((run / VOCABULARY).iterdir())
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_digests(run: Path) -> None:
    """Check that no file has changed since the run was written. Runs by older versions have no digests.

    Raises:
        ValueError: If a file has changed.
    """
    if not (run / DIGESTS).is_file():
        return
    expected, found = msgspec.json.decode((run / DIGESTS).read_bytes(), type=dict[str, str]), file_digests(run)
    if changed := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ValueError(f"{changed[0]} is not what training wrote")


def data_of(folder: Path) -> DataFacts | None:
    """Return the data that a run was trained on, or None if the run is too old to have a data.json.

    Raises:
        ValueError: If the file is invalid.
    """
    if not (path := folder / DATA).is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=DataFacts)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}. Train again.") from error


def versions(model: nn.Module) -> dict[str, str | int]:
    """Return the versions and hardware that results depend on. "gpu" is included only if the model is on a GPU."""
    device = device_of(model)
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "kernel": "yes" if device.type == "cpu" and fused.is_available() else "no",
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        **gpu,
    }
