"""The serving graph as a single node: the operator in kernel/, with the folded model as constants."""

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from contract.bundle import OUTPUT
from contract.schema import FeatureSchema
from export.graphs.block import blocks_of
from export.graphs.embedding import exact_copy
from export.graphs.pack import pack
from export.graphs.serving import serving_order
from kernel import DOMAIN, OPERATOR, VERSION
from model.layers import FeatureEmbedding
from model.stec.stec import STEC

OPSET, IR_VERSION = 17, 9  # every supported version of onnxruntime reads these


def kernel_graph(model: STEC, schema: FeatureSchema) -> onnx.ModelProto:
    """Return the graph, with the inputs and the output of ServingGraph.

    Args:
        model: A model with a linear head and only options that the kernel supports (see pack.py).
        schema: Its schema.
    """
    if model.embedding_norm is not None:  # otherwise, a large table would be copied for nothing
        model = exact_copy(model)
    weights = pack(model, serving_order(schema)).numpy()
    fields = {
        (kind, side): len(schema.select(kind, side))
        for side in ("context", "candidate")
        for kind in ("categorical", "numeric")
    }
    constants = model_constants(model, schema, list(fields.values())) | {"weights": weights}
    shapes: dict[str, tuple[int, list[str | int]]] = {
        "context_ids": (TensorProto.INT64, ["requests", fields["categorical", "context"]]),
        "candidate_ids": (TensorProto.INT64, ["candidates", fields["categorical", "candidate"]]),
        "request_index": (TensorProto.INT64, ["candidates"]),
    }
    for side, rows in (("context", "requests"), ("candidate", "candidates")):
        if fields["numeric", side]:
            shapes[f"{side}_values"] = (TensorProto.FLOAT, [rows, fields["numeric", side]])
        else:  # the operator requires this input
            constants[f"{side}_values"] = np.empty((0, 0), np.float32)
    order = ("sizes", "table", "offsets", "alpha", "weights", "context_ids", "candidate_ids", "request_index")
    graph = helper.make_graph(
        [helper.make_node(OPERATOR, [*order, "context_values", "candidate_values"], [OUTPUT], domain=DOMAIN)],
        "kernel",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["candidates"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def model_constants(model: STEC, schema: FeatureSchema, fields: list[int]) -> dict[str, NDArray[np.generic]]:
    """Return the operator's constants, except for the packed weights.

    Args:
        model: The model.
        schema: Its schema.
        fields: The field counts, in the order of stec::Sizes.
    """
    embedding, block = model.embedding, blocks_of(model)[0]
    categorical, numeric = schema.select("categorical"), schema.select("numeric")
    serving = schema.in_serving_order()
    columns = [categorical.index(f) for f in serving if f.kind == "categorical"]
    numbers = [numeric.index(f) for f in serving if f.kind == "numeric"]
    width, hidden = block.out.in_features, block.ffn[0].out_features if block.has_ffn else 0
    request_attention = int(model.allowed_FF is not None)
    # In the order of stec::Sizes.
    sizes = [width, block.heads, hidden, len(model.blocks), *fields, request_attention]
    return {
        "sizes": np.array(sizes, np.int64),
        "table": embedding.table.weight.detach().float().numpy(),
        "offsets": embedding.offsets[columns].numpy(),
        "alpha": torch.cat([vectors[numbers] for vectors in numeric_vectors(embedding)]).float().numpy(),
    }


def numeric_vectors(embedding: FeatureEmbedding) -> list[Tensor]:
    """Return the operator's vectors of the numeric fields: alpha, then those of missing numbers, then the offsets.

    Each has the shape (numeric, D). Vectors after the last ones that the model has are omitted.
    """
    alpha = embedding.alpha.detach()
    missing = None if embedding.beta is None else embedding.beta.detach()
    if embedding.offset is None:
        return [alpha] if missing is None else [alpha, missing]
    # NaN stays NaN in a model without vectors of missing numbers.
    return [alpha, torch.full_like(alpha, torch.nan) if missing is None else missing, embedding.offset]
