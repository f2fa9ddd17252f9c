"""Speedup of the service's graphs over a plain export of the same model.

Three graphs with the same weights and requests run in turn on one onnxruntime thread, as in the service: plain (the
model as exported by torch), folded (onnxruntime's own operators) and kernel (the operator from kernel/). A large matrix
product measures the core's peak performance. On a CPU with AVX-512, the kernel also runs with eight and with sixteen
lanes in turn.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import kernel
from benchmarks import RESULTS
from contract.bundle import OUTPUT
from contract.schema import Attention, FeatureSchema, Field
from export.graphs.kernel import kernel_graph
from export.graphs.plain import PlainGraph
from export.graphs.serving import ServingGraph
from export.onnx_file import save_together, to_onnx
from loadtest.report import Table, write_report
from model.stec.stec import STEC, STECConfig, stec_for
from model.training.device import cpu_name

Feed = dict[str, NDArray[np.int64]]
Run = Callable[[Feed], NDArray[np.float32]]

ATTENTIONS: tuple[Attention, Attention] = ("full", "request")
TOKENS = 1000  # per field
CONTEXT_FIELDS = {10: 8, 23: 18, 39: 30}
CANDIDATES = (1, 10, 100, 500, 1000)
WIDTH_CANDIDATES = (1, 10, 100, 500)  # in the comparison of the kernel's widths
BATCHES = ((1, 100), (4, 100), (16, 100), (4, 1), (16, 1))  # (requests, candidates per request)
SECONDS = 1.5  # approximate time per table row
WARM_UP, MIN_ROUNDS, MAX_ROUNDS = 5, 30, 400
PEAK_SIZE = 768
WIDTHS_NOTE = {
    8: "This CPU has no AVX-512, so the kernel was measured with eight lanes only.",
    16: "With at most sixteen lanes, the kernel chooses sixteen or eight for each run.",
}


def size(attention: Attention) -> STECConfig:
    return STECConfig(embedding=16, blocks=2, heads=2, embedding_std=0.1, attention=attention)


def trained(fields: int, attention: Attention) -> tuple[STEC, FeatureSchema]:
    """Return a model with running statistics but otherwise initial weights, because speed does not depend on them."""
    context = CONTEXT_FIELDS[fields]
    schema = FeatureSchema(tuple(Field(f"f{i}", "context" if i < context else "candidate") for i in range(fields)))
    torch.manual_seed(0)
    model = stec_for(schema, [TOKENS] * fields, size(attention))
    for _ in range(20):
        model(torch.randint(TOKENS, (512, fields)), torch.empty(512, 0))
    return model.eval(), schema


def feed(fields: int, requests: int, candidates: int, random: np.random.Generator) -> Feed:
    """Sample the ids of a batch. candidates: number of candidates per request."""
    context = CONTEXT_FIELDS[fields]
    return {
        "context_ids": random.integers(TOKENS, size=(requests, context)),
        "candidate_ids": random.integers(TOKENS, size=(requests * candidates, fields - context)),
        "request_index": np.repeat(np.arange(requests), candidates),
    }


def open_session(model: onnx.ModelProto, folder: Path, name: str) -> Run:
    save_together({f"{name}.onnx": model}, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if name == "kernel":
        kernel.register(options)
    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run([OUTPUT], inputs)[0]


def open_graphs(fields: int, attention: Attention, folder: Path) -> dict[str, Run]:
    model, schema = trained(fields, attention)
    graphs = {
        "plain": to_onnx(PlainGraph(model, schema), schema),
        "folded": to_onnx(ServingGraph(model, schema), schema),
        "kernel": kernel_graph(model, schema),
    }
    runs = {}
    for name, graph in graphs.items():
        graph_folder = folder / f"{name}-{fields}-{attention}"
        graph_folder.mkdir()
        runs[name] = open_session(graph, graph_folder, name)
    return runs


def alternate(
    runs: Mapping[str, Run], draw: Callable[[], Feed], title: str, before: Callable[[str], None] = lambda name: None
) -> tuple[dict[str, list[float]], float]:
    """Run the graphs in turn on the same inputs.

    Args:
        runs: The graphs by name.
        draw: Returns new inputs for each round.
        title: What the terminal shows meanwhile.
        before: Called with a graph's name before each of its runs. Its time is not measured.

    Returns:
        The run times of each graph in ms, and the largest difference in probability from the first graph.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    difference, rounds, start = 0.0, WARM_UP + MIN_ROUNDS, time.perf_counter()
    with Console().status(title):
        for round_ in itertools.count(1):
            inputs = draw()
            answers = {}
            # The first run of a round has the inputs and its weights in a slower cache, so the order alternates.
            for name in sorted(runs, reverse=bool(round_ % 2)):
                before(name)
                run_start = time.perf_counter()
                answers[name] = runs[name](inputs)
                times[name].append((time.perf_counter() - run_start) * 1e3)
            plain, *others = (1 / (1 + np.exp(-answers[name].astype(np.float64))) for name in runs)
            difference = max(difference, *(float(np.abs(other - plain).max()) for other in others))
            if round_ == WARM_UP:  # the warm-up rounds measure how long a round takes
                each_s = (time.perf_counter() - start) / WARM_UP
                rounds = WARM_UP + max(MIN_ROUNDS, min(MAX_ROUNDS, int(SECONDS / each_s)))
            if round_ == rounds:
                return {name: column[WARM_UP:] for name, column in times.items()}, difference
    raise AssertionError("itertools.count has no end")


def ratio(slow: Sequence[float], fast: Sequence[float], digits: int = 1) -> str:
    low, middle, high = statistics.quantiles([x / y for x, y in zip(slow, fast, strict=True)], n=4)
    return f"**{middle:.{digits}f}** ({low:.{digits}f} to {high:.{digits}f})"


def flops(fields: int, attention: Attention) -> int:
    """Return the FLOPs of the matrix products for one candidate scored alone, in the factorized form."""
    model, schema = trained(fields, attention)
    inputs = {name: torch.from_numpy(array) for name, array in feed(fields, 1, 1, np.random.default_rng(0)).items()}
    plain = PlainGraph(model, schema)
    assert isinstance(plain.model, STEC)
    plain.model.plain = False  # interactions as matrix products instead of an f x f x d tensor
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        plain(**inputs)
    return int(counter.get_total_flops())


def peak_gflops() -> float:
    """Return the GFLOP/s of a large matrix product in the same onnxruntime, on one thread."""
    shape = [PEAK_SIZE, PEAK_SIZE]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b")]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "peak", inputs, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name in ("a", "b")}
    times = []
    for _ in range(20):
        start = time.perf_counter()
        session.run(None, values)
        times.append(time.perf_counter() - start)
    return 2 * PEAK_SIZE**3 / statistics.median(times) / 1e9


def over_candidates(fields: int, attention: Attention, runs: Mapping[str, Run], peak: float) -> list[list[str]]:
    random, rows, cost = np.random.default_rng(0), [], flops(fields, attention)
    for candidates in CANDIDATES:
        title = f"{fields} fields, {attention}, {candidates} candidates"
        times, difference = alternate(runs, lambda n=candidates: feed(fields, 1, n, random), title)  # type: ignore[misc]
        plain, folded, fast = (statistics.median(times[name]) for name in ("plain", "folded", "kernel"))
        gflops = cost * candidates / fast / 1e6
        rows.append(
            [
                str(fields),
                str(candidates),
                f"{plain:.2f}",
                f"{folded:.2f}",
                f"{fast:.3f}",
                ratio(times["plain"], times["folded"]),
                ratio(times["plain"], times["kernel"]),
                f"{fast * 1e3 / candidates:.1f}",
                f"{gflops:.0f} ({gflops / peak:.0%})",
                f"{difference:.0e}",
            ]
        )
    return rows


def over_requests(fields: int, attention: Attention, runs: Mapping[str, Run]) -> list[list[str]]:
    random, rows = np.random.default_rng(0), []
    for requests, candidates in BATCHES:
        title = f"{fields} fields, {attention}, {requests} x {candidates}"
        draw = lambda r=requests, n=candidates: feed(fields, r, n, random)  # noqa: E731
        times, difference = alternate(runs, draw, title)
        medians = [f"{statistics.median(times[name]):.3f}" for name in ("plain", "folded", "kernel")]
        each_us = statistics.median(times["kernel"]) * 1e3 / (requests * candidates)
        rows.append(
            [
                attention,
                str(requests),
                str(candidates),
                *medians,
                ratio(times["plain"], times["kernel"]),
                f"{each_us:.1f}",
                f"{difference:.0e}",
            ]
        )
    return rows


def over_widths(fields: int, attention: Attention, run: Run) -> list[list[str]]:
    """Compare the kernel with at most 8 lanes to the kernel with at most 16, on a CPU that has both widths."""
    random, rows = np.random.default_rng(0), []
    for candidates in WIDTH_CANDIDATES:
        title = f"{fields} fields, {attention}, {candidates} candidates, both widths"
        draw = lambda n=candidates: feed(fields, 1, n, random)  # noqa: E731
        times, difference = alternate(
            {"8": run, "16": run}, draw, title, before=lambda lanes: kernel.limit_lanes(int(lanes))
        )
        kernel.limit_lanes(16)  # for the other measurements
        assert difference == 0
        medians = [f"{statistics.median(times[lanes]):.3f}" for lanes in ("8", "16")]
        rows.append([attention, str(fields), str(candidates), *medians, ratio(times["8"], times["16"], digits=2)])
    return rows


def main() -> None:
    peak = peak_gflops()
    by_attention: dict[Attention, list[list[str]]] = {attention: [] for attention in ATTENTIONS}
    batches: list[list[str]] = []
    widths: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for attention in ATTENTIONS:
            for fields in CONTEXT_FIELDS:
                runs = open_graphs(fields, attention, Path(folder))
                by_attention[attention] += over_candidates(fields, attention, runs, peak)
                if kernel.lanes() == 16:
                    widths += over_widths(fields, attention, runs["kernel"])
                if fields == 23:
                    batches += over_requests(fields, attention, runs)
    fit = size("full")
    text = (
        f"STEC with a linear head, D = {fit.embedding}, N = {fit.blocks}, {fit.heads} heads, FFN {fit.ffn}; fields: "
        + ", ".join(f"{f} = {c} + {f - c}" for f, c in CONTEXT_FIELDS.items())
        + " (context + candidate). The three graphs run in turn in one process, on one onnxruntime thread; "
        "times are median run times in ms. Ratios to the plain export are medians over pairs of runs (with "
        "quartiles). The times per candidate (in µs) were measured with the kernel. GFLOP/s counts the factorized "
        "model's matrix products for each candidate alone, so work that is shared or avoided counts as done; the "
        f"percentage is relative to {peak:.0f} GFLOP/s, which a MatMul of size {PEAK_SIZE} reaches in the same "
        "onnxruntime. Difference is the largest difference in probability from the plain export. "
        + WIDTHS_NOTE[kernel.lanes()]
    )
    header = ["fields", "candidates", "plain ms", "folded ms", "kernel ms", "plain / folded", "plain / kernel"]
    header += ["µs a candidate", "GFLOP/s", "difference"]
    of_requests = ["attention", "requests", "candidates each", "plain ms", "folded ms", "kernel ms", "plain / kernel"]
    tables = [
        Table('One request, attention = "full"', header, by_attention["full"]),
        Table('One request, attention = "request"', header, by_attention["request"]),
        Table("Several requests in a batch, 23 fields", [*of_requests, "µs a candidate", "difference"], batches),
    ]
    if widths:
        both = ["attention", "fields", "candidates", "8 lanes ms", "16 lanes ms", "8 / 16"]
        tables.append(
            Table(f"The kernel with at most 8 and at most 16 lanes on {cpu_name()}, one request", both, widths)
        )
    title = "The serving graph: plain, folded, kernel"
    command = "python -m benchmarks.serving_graph"
    write_report(RESULTS / "serving-graph.md", title, text, tables, ["torch", "onnxruntime", "onnx"], command)


if __name__ == "__main__":
    main()
