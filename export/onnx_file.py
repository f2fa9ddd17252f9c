"""Writing graphs as ONNX files with a shared weights file."""

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
MAX_INLINE_BYTES = 1024  # arrays up to this size stay in the graph's own file
PAGE_BYTES = 4096  # only offsets that are multiples of this can be memory-mapped
EXPORTER = r"torch\.onnx\._internal\.exporter\..*"
EXAMPLE_REQUESTS, EXAMPLE_CANDIDATES = (
    3,
    7,
)  # different from each other and from 0 and 1, for which the tracer specializes


def to_onnx(graph: nn.Module, schema: FeatureSchema, outputs: Sequence[str] = (OUTPUT,)) -> onnx.ModelProto:
    """Convert a graph to ONNX, for any number of requests and candidates.

    Args:
        graph: A module with the inputs of the serving graph.
        schema: The schema.
        outputs: The names of the outputs.
    """
    inputs = example_inputs(schema)
    sizes = {name: torch.export.Dim("requests" if name.startswith("context") else "candidates") for name in inputs}
    with warnings.catch_warnings(), only_errors(logging.getLogger("torch.onnx._internal.exporter._registration")):
        # The inputs of a side share an axis on purpose, and torch's exporter uses a deprecated torch function.
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
    model: onnx.ModelProto = program.model_proto
    # The exporter writes its stack trace to the metadata of each node. The stack traces make up most of the file,
    # contain paths of this machine, and differ between exports.
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


def save_together(models: Mapping[str, onnx.ModelProto], folder: Path) -> None:
    """Write each model to a file with its name. Arrays above MAX_INLINE_BYTES go to WEIGHTS, a shared file."""
    offsets: dict[bytes, int] = {}
    # Don't use onnx's save function: it makes the file readable only by its owner, but the service may run as another
    # user.
    with (folder / WEIGHTS).open("wb") as weights:
        for model in models.values():
            for tensor in model.graph.initializer:
                if len(raw := tensor.raw_data) > MAX_INLINE_BYTES:
                    if raw not in offsets:
                        weights.write(bytes(-weights.tell() % PAGE_BYTES))
                        offsets[raw] = weights.tell()
                        weights.write(raw)
                    set_external_data(tensor, WEIGHTS, offsets[raw], len(raw))
                    tensor.ClearField("raw_data")
    for name, model in models.items():
        (folder / name).write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def only_errors(logger: logging.Logger) -> Iterator[None]:
    """Suppress the logger's warnings about torchvision's operators, which no model here uses."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def example_inputs(schema: FeatureSchema) -> dict[str, Tensor]:
    """Return example inputs of the serving graph by name. Only sides with numeric fields have an input for values."""
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
