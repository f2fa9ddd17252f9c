"""A graph module -> an ONNX file whose weights lie in one file beside it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from contract.schema import FeatureSchema

WEIGHTS = "weights.bin"
EXPORTER = r"torch\.onnx\._internal\.exporter\..*"
EXAMPLE_REQUESTS, EXAMPLE_CANDIDATES = 3, 7  # different, and neither 0 nor 1: those are specialised by the tracer


def write_onnx(graph: nn.Module, schema: FeatureSchema, path: Path) -> None:
    """Writes `path` and, for everything above a kilobyte, WEIGHTS in the same folder."""
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
            output_names=["logit"],
            dynamic_shapes={name: {0: size} for name, size in sizes.items()},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = _without_notes(program.model_proto)
    onnx.save_model(model, path, save_as_external_data=True, location=WEIGHTS, size_threshold=1024)
    # onnx writes it for its owner alone; who serves is often somebody else.
    (path.parent / WEIGHTS).chmod(0o644)


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
