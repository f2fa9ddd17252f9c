"""What does each model of a data set cost to serve?

Every experiment in a folder, as it starts: speed does not depend on weights. Its serving graph as ctr-export writes it
and as a worker runs it on a CPU, on one thread, the models in turn. Also writes FOLDER/serving.json, which
`ctr-compare --all FOLDER` reads.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from benchmarks.report import Table, write_report
from benchmarks.serving_graph import Feed, Run, alternate, open_session
from export.kernel_graph import kernel_graph
from export.onnx_file import to_onnx
from export.pack import what_has_no_kernel
from export.plain_graph import BaselineGraph
from model.data.folder import add_data_argument
from model.data.prepared import Prepared, read_prepared
from model.experiment import Experiment, read_experiment
from model.folder import write_whole
from model.layers import fields_of
from model.standings import SERVING
from model.stec import STEC
from model.zoo import build

CANDIDATES = (1, 100)
TEXT = f"""One request of {" or ".join(map(str, CANDIDATES))} candidates, ids drawn at random from the vocabulary,
through each model's serving graph on one thread, the models in turn. STEC's is the kernel; the others are onnxruntime's
own operators, and look up a context's embeddings once a request. Median milliseconds of a run; us: a candidate."""


def open_model(experiment: Experiment, prepared: Prepared, folder: Path, name: str) -> Run:
    """As the service would run it. Raises ValueError for a STEC that the kernel does not know."""
    torch.manual_seed(0)
    model = build(fields_of(prepared.schema, prepared.vocabulary_sizes), experiment.model).eval()
    own = folder / name
    own.mkdir()
    if not isinstance(model, STEC):
        return open_session(to_onnx(BaselineGraph(model, prepared.schema), prepared.schema), own, "model")
    if len(model.head) > 1 or (option := what_has_no_kernel(model)):
        raise ValueError(f"{name}: the kernel does not compute {option if len(model.head) == 1 else 'an MLP head'}")
    return open_session(kernel_graph(model, prepared.schema), own, "kernel")


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of experiments, each named by its model: experiments/frappe")
    add_data_argument(parser)
    options = parser.parse_args()
    experiments = {p.stem: read_experiment(p) for p in sorted(options.folder.glob("*.toml")) if "sweep" not in p.stem}
    logs = {e.data.prepared for e in experiments.values()}
    if len(experiments) < 2 or len(logs) > 1:
        parser.error(
            f"{options.folder} has {len(experiments)} experiments of {len(logs)} logs: two or more of one are compared"
        )
    prepared = read_prepared(options.data / logs.pop())
    if prepared.schema.select("numeric"):
        parser.error(f"{prepared.folder} has numeric fields, for which no request is drawn here")
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: open_model(e, prepared, Path(folder), name) for name, e in experiments.items()}
        found = measure(runs, prepared)
    us = {name: milliseconds[-1] * 1e3 / CANDIDATES[-1] for name, milliseconds in found.items()}
    rows = [
        [name, *(f"{ms:.3f}" for ms in found[name]), f"{us[name]:.2f}"] for name in sorted(found, key=lambda n: us[n])
    ]
    header = ["model", *(f"{n} ms" for n in CANDIDATES), f"us, of {CANDIDATES[-1]}"]
    name, command = f"models-{options.folder.name}", f"python -m benchmarks.models {options.folder}"
    write_report(
        name, f"Serving each model: {options.folder.name}", TEXT, [Table("", header, rows)], ["onnxruntime"], command
    )
    write_whole(options.folder / SERVING, msgspec.json.format(msgspec.json.encode(us)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
