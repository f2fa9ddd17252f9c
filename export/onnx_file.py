"""Graphs -> ONNX files whose weights lie in one file beside them, each once."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from contract.bundle import OUTPUT
from contract.schema import FeatureSchema

WEIGHTS = "weights.bin"
SMALL_BYTES = 1024  # stays in the graph's own file
PAGE_BYTES = 4096  # the offsets that can be mapped into memory
EXPORTER = r"torch\.onnx\._internal\.exporter\..*"
EXAMPLE_REQUESTS, EXAMPLE_CANDIDATES = 3, 7  # different, and neither 0 nor 1: those are specialised by the tracer


def to_onnx(graph: nn.Module, schema: FeatureSchema, outputs: Sequence[str] = (OUTPUT,)) -> onnx.ModelProto:
    """A module with the serving graph's inputs, traced for any number of requests and candidates."""
    inputs = example_inputs(schema)
    sizes = {name: torch.export.Dim("requests" if name.startswith("context") else "candidates") for name in inputs}
    with warnings.catch_warnings(), _quiet(logging.getLogger("torch.onnx._internal.exporter._registration")):
        # All inputs of one side share an axis, on purpose. And torch's exporter calls a deprecated part of torch.
        warnings.filterwarnings("ignore", r"# The axis name: .* will not be used", UserWarning, EXPORTER)
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        program = torch.onnx.export(
            graph.eval(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes={name: {0: size} for name, size in sizes.items()},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return _without_notes(program.model_proto)


def save_together(models: Mapping[str, onnx.ModelProto], folder: Path) -> None:
    """Writes each model under its name and WEIGHTS: every array above a kilobyte, once, whoever uses it."""
    places: dict[bytes, int] = {}
    # onnxruntime and its users need not be the owner: not onnx's own saving, which makes the file for him alone.
    with (folder / WEIGHTS).open("wb") as weights:
        for model in models.values():
            for tensor in model.graph.initializer:
                if len(raw := tensor.raw_data) > SMALL_BYTES:
                    if raw not in places:
                        weights.write(bytes(-weights.tell() % PAGE_BYTES))
                        places[raw] = weights.tell()
                        weights.write(raw)
                    set_external_data(tensor, WEIGHTS, places[raw], len(raw))
                    tensor.ClearField("raw_data")
    for name, model in models.items():
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))


def _without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The exporter notes its stack on each node: a machine's paths, most of the file, and no two exports alike."""
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        del part.metadata_props[:]
    return model


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """It warns of torchvision's operators, which no model here has."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def example_inputs(schema: FeatureSchema) -> dict[str, Tensor]:
    """The serving graph's inputs by name; value inputs only where the schema has numeric fields."""
    requests, candidates = EXAMPLE_REQUESTS, EXAMPLE_CANDIDATES
    inputs = {
        "context_ids": torch.zeros(requests, len(schema.select("categorical", "context")), dtype=torch.int64),
        "candidate_ids": torch.zeros(candidates, len(schema.select("categorical", "candidate")), dtype=torch.int64),
        "request_index": torch.arange(candidates) % requests,
    }
    if context_numeric := len(schema.select("numeric", "context")):
        inputs["context_values"] = torch.zeros(requests, context_numeric)
    if candidate_numeric := len(schema.select("numeric", "candidate")):
        inputs["candidate_values"] = torch.zeros(candidates, candidate_numeric)
    return inputs
