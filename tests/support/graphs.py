"""Schemas, models with realistic weights and statistics, and inputs for their graphs."""

import copy
import functools
import itertools
import random
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import kernel
from contract.schema import Attention, FeatureSchema, Field, Kind, Side
from export.graphs.plain import PlainGraph
from model.stec.stec import STEC, STECConfig, stec_for

TOKENS = 12
needs_kernel = pytest.mark.skipif(not kernel.is_usable(), reason="the kernel is not usable: no C++20 compiler?")
Feed = dict[str, NDArray[Any]]


def mixed_schema(numeric: bool) -> FeatureSchema:
    """Return a schema with sides and kinds in arbitrary order, as a user may write them."""
    kinds: list[Kind] = ["categorical", "numeric"] if numeric else ["categorical"]
    sides: list[Side] = ["candidate", "context"]
    fields = [Field(f"f{i}", side, kind) for i, (kind, side) in enumerate(itertools.product(kinds * 2, sides))]
    random.Random(4).shuffle(fields)
    return FeatureSchema(tuple(fields))


def trained(
    schema: FeatureSchema, std: float, near_constant: bool = False, attention: Attention = "full", **options: Any
) -> STEC:
    """Return a model with the statistics of many batches, and seed torch. Each call returns another copy."""
    torch.manual_seed(0)
    return copy.deepcopy(_trained(schema, std, near_constant, attention, tuple(options.items())))


@functools.cache
def _trained(
    schema: FeatureSchema, std: float, near_constant: bool, attention: Attention, options: tuple[tuple[str, Any], ...]
) -> STEC:
    torch.manual_seed(0)
    categorical, numeric = len(schema.select("categorical")), len(schema.select("numeric"))
    size = STECConfig(embedding=16, blocks=2, heads=2, embedding_std=std, attention=attention, **dict(options))
    model = stec_for(schema, [TOKENS] * categorical, size)
    for norm in model.modules():
        if isinstance(norm, torch.nn.LayerNorm):  # values as after training, not the initial ones
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    for _ in range(30):
        ids = torch.randint(TOKENS, (512, categorical))
        if near_constant:
            ids[:, 0] = 2
            ids[torch.rand(512) < 0.999, 1] = 2
        model(ids, torch.randn(512, numeric))
    return model.eval()


def request(schema: FeatureSchema, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Return random inputs for several requests. sizes: the number of candidates of each request."""
    torch.manual_seed(1)
    rows = {"context": len(sizes), "candidate": sum(sizes)}
    inputs = {}
    for side in ("context", "candidate"):
        inputs[f"{side}_ids"] = torch.randint(TOKENS, (rows[side], len(schema.select("categorical", side))))
        if numeric := len(schema.select("numeric", side)):
            inputs[f"{side}_values"] = torch.randn(rows[side], numeric, dtype=torch.float64)
    return inputs | {"request_index": torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))}


def single(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}


def schema_of(context: int, candidate: int, numeric: int) -> FeatureSchema:
    """Return a schema with these numbers of categorical fields, and `numeric` numeric fields on each side."""
    fields = [Field(f"u{i}", "context") for i in range(context)]
    fields += [Field(f"c{i}", "candidate") for i in range(candidate)]
    for i in range(numeric):
        fields += [Field(f"un{i}", "context", "numeric"), Field(f"cn{i}", "candidate", "numeric")]
    return FeatureSchema(tuple(fields))


def with_missing_vectors(schema: FeatureSchema) -> FeatureSchema:
    """Return the schema with a missing vector for every numeric field."""
    fields = (msgspec.structs.replace(f, missing_vector=True) if f.kind == "numeric" else f for f in schema.fields)
    return FeatureSchema(tuple(fields))


def hide(feed: Feed, share: float = 0.4) -> Feed:
    """Return the feed with a share of its numbers missing."""
    random = np.random.default_rng(5)
    return {
        name: np.where(random.random(array.shape) < share, np.float32(np.nan), array) if "values" in name else array
        for name, array in feed.items()
    }


def a_model(schema: FeatureSchema, size: STECConfig, seed: int = 0) -> STEC:
    """Return a model whose batch-norm statistics and norm weights look like those of a trained model."""
    torch.manual_seed(seed)
    categorical, numeric = len(schema.select("categorical")), len(schema.select("numeric"))
    model = stec_for(schema, [TOKENS] * categorical, size)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    for _ in range(10):
        model(torch.randint(TOKENS, (128, categorical)), torch.randn(128, numeric))
    return model.eval()


def a_feed(schema: FeatureSchema, sizes: list[int], seed: int = 1) -> Feed:
    random = np.random.default_rng(seed)
    rows = {"context": len(sizes), "candidate": sum(sizes)}
    feed: Feed = {"request_index": np.repeat(np.arange(len(sizes)), sizes)}
    for side in ("context", "candidate"):
        feed[f"{side}_ids"] = random.integers(TOKENS, size=(rows[side], len(schema.select("categorical", side))))
        if numeric := len(schema.select("numeric", side)):
            feed[f"{side}_values"] = random.normal(size=(rows[side], numeric)).astype(np.float32)
    return feed


def session_of(model: onnx.ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if kernel.is_usable():
        kernel.register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_torch(model: nn.Module, schema: FeatureSchema, feed: Feed) -> NDArray[np.float64]:
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    doubles = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    with torch.inference_mode():
        logit: NDArray[np.float64] = PlainGraph(model, schema).double()(**doubles).numpy()
    return logit
