"""How much faster is the folded serving graph than a plain export of the same model?

Both as onnxruntime runs them in the service (one thread), the same weights and requests, alternating.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import nn

from benchmarks.report import write_report
from contract.bundle import MODEL
from contract.schema import FeatureSchema, Field
from export.graph import PlainGraph, ServingGraph
from export.onnx_file import write_onnx
from model.experiment import Model
from model.stec import STEC

SIZE = Model(embedding=16, blocks=2, heads=2, embedding_std=0.1)
TOKENS = 1000  # a field
CONTEXT_FIELDS = {10: 8, 23: 18, 39: 30}
CANDIDATES = (1, 100)
ROUNDS = 200


def session(graph: nn.Module, schema: FeatureSchema, folder: Path) -> onnxruntime.InferenceSession:
    folder.mkdir()
    write_onnx(graph, schema, folder / MODEL)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])


def trained(fields: int) -> tuple[STEC, FeatureSchema]:
    """A model with running statistics of its own, not trained further: speed does not depend on weights."""
    context = CONTEXT_FIELDS[fields]
    schema = FeatureSchema(tuple(Field(f"f{i}", "context" if i < context else "candidate") for i in range(fields)))
    torch.manual_seed(0)
    model = STEC([TOKENS] * fields, 0, SIZE)
    for _ in range(20):
        model(torch.randint(TOKENS, (512, fields)), torch.empty(512, 0))
    return model.eval(), schema


def requests(fields: int, candidates: int, random: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    context = CONTEXT_FIELDS[fields]
    return {
        "context_ids": random.integers(TOKENS, size=(1, context)),
        "candidate_ids": random.integers(TOKENS, size=(candidates, fields - context)),
        "request_index": np.zeros(candidates, np.int64),
    }


def milliseconds(
    session: onnxruntime.InferenceSession, feed: dict[str, NDArray[np.int64]]
) -> tuple[float, NDArray[np.float32]]:
    start = time.perf_counter()
    (logit,) = session.run(["logit"], feed)
    return (time.perf_counter() - start) * 1e3, logit


def compare(fields: int, folder: Path) -> list[list[str]]:
    model, schema = trained(fields)
    plain = session(PlainGraph(model, schema), schema, folder / f"plain-{fields}")
    folded = session(ServingGraph(model, schema), schema, folder / f"folded-{fields}")
    return [_row(fields, candidates, plain, folded) for candidates in CANDIDATES]


def _row(
    fields: int, candidates: int, plain: onnxruntime.InferenceSession, folded: onnxruntime.InferenceSession
) -> list[str]:
    random = np.random.default_rng(0)
    times: list[tuple[float, float]] = []
    difference = 0.0
    for round_ in track(range(ROUNDS + 10), f"{fields} fields, {candidates} candidates"):
        feed = requests(fields, candidates, random)
        (a, a_logit), (b, b_logit) = milliseconds(plain, feed), milliseconds(folded, feed)
        difference = max(difference, float(np.abs(a_logit - b_logit).max()))
        if round_ >= 10:  # the first ones warm up
            times.append((a, b))
    plain_ms, folded_ms = (statistics.median(column) for column in zip(*times, strict=True))
    low, middle, high = statistics.quantiles([x / y for x, y in times], n=4)
    ratio = f"**{middle:.1f}** ({low:.1f} to {high:.1f})"
    return [str(fields), str(candidates), f"{plain_ms:.2f}", f"{folded_ms:.2f}", ratio, f"{difference:.0e}"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for fields in CONTEXT_FIELDS for row in compare(fields, Path(folder))]
    text = (
        f"STEC with a linear head, D = {SIZE.embedding}, N = {SIZE.blocks}, {SIZE.heads} heads; one request, "
        f"onnxruntime on one thread. Median of {ROUNDS} calls of each graph, alternating; ratio: median of the "
        "pairs' (quartiles). Difference: largest over all logits."
    )
    header = ["fields", "candidates", "plain ms", "folded ms", "ratio", "logit difference"]
    write_report(
        "serving-graph", "The serving graph, plain and folded", text, header, rows, ["torch", "onnxruntime", "onnx"]
    )


if __name__ == "__main__":
    main()
