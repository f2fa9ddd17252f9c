"""What does each model of a data set cost to serve and to train?

Every experiment in a folder, as it starts: speed does not depend on weights. Its serving graph as ctr-export writes it
and as a worker runs it on a CPU, on one thread; and its steps of training, on as many threads as torch takes. The
models in turn. Also writes FOLDER/speed.json, which `ctr-compare --all FOLDER` reads.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
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
TEXT = f"""One request of {" or ".join(map(str, CANDIDATES))} candidates, ids drawn at random from the vocabulary,
through each model's serving graph on one thread, the models in turn. STEC's is the kernel; the others are onnxruntime's
own operators, and look up a context's embeddings once a request. Median milliseconds of a run; us: a candidate.
Training: rows/s of the median step, forward to optimizer, of {STEPS} steps of each model on one batch of real rows, the
models in turn, on {torch.get_num_threads()} threads; evaluation not counted."""


def open_model(experiment: Experiment, prepared: Prepared, folder: Path, name: str) -> Run:
    """As the service would run it."""
    torch.manual_seed(0)
    model = build(fields_of(prepared.schema, prepared.vocabulary_sizes), experiment.model).eval()
    own = folder / name
    own.mkdir()
    if isinstance(model, STEC) and len(model.head) == 1 and not option_without_kernel(model):
        return open_session(kernel_graph(model, prepared.schema), own, "kernel")
    return open_session(to_onnx(scoring_graph(model, prepared.schema), prepared.schema), own, "model")


def feed(prepared: Prepared, candidates: int, random: np.random.Generator) -> Feed:
    """One request. Of categorical fields only, as Frappe and MovieLens' tags are."""
    sizes = list(zip(prepared.schema.select("categorical"), prepared.vocabulary_sizes, strict=True))
    context, candidate = ([n for field, n in sizes if field.side == side] for side in ("context", "candidate"))
    return {
        "context_ids": random.integers(context, size=(1, len(context))),
        "candidate_ids": random.integers(candidate, size=(candidates, len(candidate))),
        "request_index": np.zeros(candidates, np.int64),
    }


def measure(runs: Mapping[str, Run], prepared: Prepared) -> dict[str, list[float]]:
    """Of each model the median milliseconds of a run, for each of CANDIDATES."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for candidates in CANDIDATES:
        draw = partial(feed, prepared, candidates, np.random.default_rng(1))
        times, _ = alternate(runs, draw, f"{candidates} candidates")
        for name, milliseconds in times.items():
            found[name].append(statistics.median(milliseconds))
    return found


def measure_training(experiments: Mapping[str, Experiment], prepared: Prepared) -> dict[str, float]:
    """Rows/s of each model."""
    train = load_split(prepared, "train")
    batch = {name: min(e.training.batch_size, len(train)) for name, e in experiments.items()}
    steps = {name: training(e, prepared, train.part(0, batch[name])) for name, e in experiments.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(WARM_UP + STEPS), "training"):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: batch[name] / statistics.median(times[WARM_UP:]) for name, times in seconds.items()}


def training(experiment: Experiment, prepared: Prepared, rows: Rows) -> Callable[[], object]:
    """One step more at each call."""
    torch.manual_seed(0)
    model = build(fields_of(prepared.schema, prepared.vocabulary_sizes), experiment.model).train()
    batch = rows.ids.long(), rows.values, rows.labels
    optimizer = torch.optim.Adam(model.parameters(), lr=experiment.training.learning_rate)
    return partial(train_step, model, embedding_parameters(model), batch, experiment.training, optimizer)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of experiments, each named by its model: experiments/frappe")
    add_data_argument(parser)
    options = parser.parse_args()
    experiments = {p.stem: read_experiment(p) for p in sorted(options.folder.glob("*.toml")) if "sweep" not in p.stem}
    if len(experiments) < 2:
        parser.error(f"{options.folder} has {len(experiments)} experiments: two or more are compared")
    try:
        prepared = read_prepared(options.data / common_data(list(experiments.values())).prepared)
    except ValueError as error:
        parser.error(str(error))
    if prepared.schema.select("numeric"):
        parser.error(f"{prepared.folder} has numeric fields, for which no request is drawn here")
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: open_model(e, prepared, Path(folder), name) for name, e in experiments.items()}
        found = measure(runs, prepared)
    keep_freed_memory()
    trained = measure_training(experiments, prepared)
    speed = {name: Speed(found[name][-1] * 1e3 / CANDIDATES[-1], trained[name]) for name in found}
    rows = [
        [name, *(f"{ms:.3f}" for ms in found[name]), f"{speed[name].us:.2f}", f"{speed[name].rows_per_s:,.0f}"]
        for name in sorted(found, key=lambda n: speed[n].us)
    ]
    header = ["model", *(f"{n} ms" for n in CANDIDATES), f"us, of {CANDIDATES[-1]}", "training rows/s"]
    name, command = f"models-{options.folder.name}", f"python -m benchmarks.models {options.folder}"
    write_report(
        RESULTS / f"{name}.md",
        f"Each model's speed: {options.folder.name}",
        TEXT,
        [Table("", header, rows)],
        LIBRARIES,
        command,
    )
    write_whole(options.folder / run_registry.RESULTS / SPEED, msgspec.json.format(msgspec.json.encode(speed)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
