"""Cost of serving and training each model of a data set.

The benchmark measures every experiment in a folder with its initial weights, because speed does not depend on the
weights. For serving, it runs the graph that ctr-export writes on one thread, as a worker does on a CPU. For training,
it runs steps on torch's default number of threads. The models run alternately. It also writes
FOLDER/results/speed.json, which `ctr-compare --all FOLDER` reads.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.progress import track

from benchmarks import RESULTS
from benchmarks.serving_graph import Feed, Run, alternate, open_session
from export.bundle import scoring_graph
from export.graphs.kernel import kernel_graph
from export.graphs.pack import option_without_kernel
from export.onnx_file import to_onnx
from loadtest.report import Table, write_report
from model.atomic_folder import write_whole
from model.data.data_folder import add_data_argument
from model.data.prepare.prepared import Prepared, read_prepared
from model.experiment_config import Experiment, common_data, read_experiment
from model.experiments import run_registry
from model.experiments.leaderboard import SPEED, Speed
from model.experiments.trial import load_split
from model.layers import embedding_parameters, fields_of
from model.stec.stec import STEC
from model.training.batches import Rows
from model.training.device import keep_freed_memory
from model.training.fit import train_step
from model.zoo import build

CANDIDATES = (1, 100)
STEPS, WARM_UP = 7, 1
LIBRARIES = ("onnxruntime", "torch")
TEXT = f"""Serving: one request with {" or ".join(map(str, CANDIDATES))} candidates, with ids sampled uniformly from the
vocabulary, through each model's serving graph on one thread. STEC's graph uses the kernel. The other graphs use
onnxruntime's own operators, and look up a context's embeddings once per request. The figures are the median run time in
ms and in µs per candidate. Training: rows/s of the median of {STEPS} steps, from forward pass to optimizer, on one
batch of real rows with {torch.get_num_threads()} threads, without evaluation. In both cases, the models run
alternately."""


def open_model(experiment: Experiment, prepared: Prepared, folder: Path, name: str) -> Run:
    """Return a function that runs an experiment's serving graph in the same way as the service."""
    torch.manual_seed(0)
    model = build(fields_of(prepared.schema, prepared.vocabulary_sizes), experiment.model).eval()
    model_folder = folder / name
    model_folder.mkdir()
    if isinstance(model, STEC) and len(model.head) == 1 and not option_without_kernel(model):
        return open_session(kernel_graph(model, prepared.schema), model_folder, "kernel")
    return open_session(to_onnx(scoring_graph(model, prepared.schema), prepared.schema), model_folder, "model")


def feed(prepared: Prepared, candidates: int, random: np.random.Generator) -> Feed:
    """Sample the ids of one request. All fields must be categorical, as in Frappe and MovieLens tags."""
    sizes = list(zip(prepared.schema.select("categorical"), prepared.vocabulary_sizes, strict=True))
    context, candidate = ([size for field, size in sizes if field.side == side] for side in ("context", "candidate"))
    return {
        "context_ids": random.integers(context, size=(1, len(context))),
        "candidate_ids": random.integers(candidate, size=(candidates, len(candidate))),
        "request_index": np.zeros(candidates, np.int64),
    }


def measure(runs: Mapping[str, Run], prepared: Prepared) -> dict[str, list[float]]:
    """Return the median run time of each model in ms, for each of CANDIDATES."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for candidates in CANDIDATES:
        draw = partial(feed, prepared, candidates, np.random.default_rng(1))
        times_ms, _ = alternate(runs, draw, f"{candidates} candidates")
        for name, model_times_ms in times_ms.items():
            found[name].append(statistics.median(model_times_ms))
    return found


def measure_training(experiments: Mapping[str, Experiment], prepared: Prepared) -> dict[str, float]:
    """Return the training speed of each model in rows/s."""
    train = load_split(prepared, "train")
    rows = {name: min(experiment.training.batch_size, len(train)) for name, experiment in experiments.items()}
    steps = {
        name: training_step(experiment, prepared, train.part(0, rows[name])) for name, experiment in experiments.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(WARM_UP + STEPS), "training"):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: rows[name] / statistics.median(times[WARM_UP:]) for name, times in seconds.items()}


def training_step(experiment: Experiment, prepared: Prepared, rows: Rows) -> Callable[[], object]:
    """Return a function that runs one training step of the experiment's model on these rows each time it is called."""
    torch.manual_seed(0)
    model = build(fields_of(prepared.schema, prepared.vocabulary_sizes), experiment.model).train()
    batch = replace(rows, ids=rows.ids.long())
    optimizer = torch.optim.Adam(model.parameters(), lr=experiment.training.learning_rate)
    return partial(train_step, model, embedding_parameters(model), batch, experiment.training, optimizer)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="folder with experiments named after their models, such as experiments/frappe"
    )
    add_data_argument(parser)
    options = parser.parse_args()
    paths = [path for path in sorted(options.folder.glob("*.toml")) if "sweep" not in path.stem]
    experiments = {path.stem: read_experiment(path) for path in paths}
    if len(experiments) < 2:
        parser.error(f"{options.folder} has {len(experiments)} experiments; a comparison requires two or more")
    try:
        prepared = read_prepared(options.data / common_data(list(experiments.values())).prepared)
    except ValueError as error:
        parser.error(str(error))
    if prepared.schema.select("numeric"):
        parser.error(f"{prepared.folder} has numeric fields; this benchmark supports only categorical fields")
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: open_model(experiment, prepared, Path(folder), name) for name, experiment in experiments.items()}
        found = measure(runs, prepared)
    keep_freed_memory()
    trained = measure_training(experiments, prepared)
    speed = {name: Speed(found[name][-1] * 1e3 / CANDIDATES[-1], trained[name]) for name in found}
    rows = [
        [name, *(f"{ms:.3f}" for ms in found[name]), f"{speed[name].us:.2f}", f"{speed[name].rows_per_s:,.0f}"]
        for name in sorted(found, key=lambda name: speed[name].us)
    ]
    each = f"µs a candidate, of {CANDIDATES[-1]}"
    header = ["model", *(f"{candidates} ms" for candidates in CANDIDATES), each, "training rows/s"]
    name, command = f"models-{options.folder.name}", f"python -m benchmarks.models {options.folder}"
    write_report(
        RESULTS / f"{name}.md",
        f"Each model's speed: {options.folder.name}",
        TEXT,
        [Table("", header, rows)],
        LIBRARIES,
        command,
    )
    (options.folder / run_registry.RESULTS).mkdir(exist_ok=True)
    write_whole(options.folder / run_registry.RESULTS / SPEED, msgspec.json.format(msgspec.json.encode(speed)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
