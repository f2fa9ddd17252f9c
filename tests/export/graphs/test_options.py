"""A model with a linear head can be folded and explained with any options, and gives the same logits."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bundle import EXPLAIN, EXPLANATION, MODEL
from contract.schema import FeatureSchema
from export.graphs.explain import ExplainGraph
from export.graphs.kernel import kernel_graph
from export.graphs.level import first_in_head
from export.graphs.pack import option_without_kernel
from export.graphs.plain import PlainGraph
from export.graphs.serving import ScreenGraph, ServingGraph
from export.onnx_file import save_together, to_onnx
from model.stec.stec import STECConfig
from tests.support.examples import examples
from tests.support.graphs import (
    TOKENS,
    a_feed,
    a_model,
    by_torch,
    mixed_schema,
    needs_kernel,
    request,
    schema_of,
    session_of,
    single,
    trained,
)
from tests.support.stec_models import models

pytestmark = pytest.mark.numeric

# Two models that together use each option at least once. tests/export/test_bundle.py exports other combinations.
EXPORTED: list[dict[str, Any]] = [
    {"interaction": "xwx", "scale": "mean", "fusion": "add", "pairs": "upper", "attention": "request", "blocks": 1},
    {"interaction": "separate", "fusion": "last", "last": "block", "pairs": "upper_diag", "blocks": 2},
]
SCHEMA = schema_of(3, 2, 1)


def tensors(feed: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}


@settings(max_examples=examples(40), deadline=None)
@given(size=models(), sizes=st.sampled_from([[1], [3, 1, 9]]), seed=st.integers(0, 99))
def test_the_folded_graph_and_the_contributions_give_the_models_logit(
    size: STECConfig, sizes: list[int], seed: int
) -> None:
    model, feed = a_model(SCHEMA, size, seed), a_feed(SCHEMA, sizes, seed)
    expected = torch.from_numpy(by_torch(model, SCHEMA, feed))
    inputs = tensors(feed)
    torch.testing.assert_close(ServingGraph(model, SCHEMA)(**inputs).double(), expected, rtol=0, atol=3e-5)
    logit, contribution, attention, bias = ExplainGraph(model, SCHEMA)(**inputs)
    torch.testing.assert_close(logit.double(), expected, rtol=0, atol=3e-5)
    torch.testing.assert_close(contribution.double().sum((1, 2, 3)) + bias, expected, rtol=0, atol=3e-5)
    blocks = len(model.blocks)
    fields = len(SCHEMA.fields)
    assert contribution.shape == (len(expected), blocks + 1, fields, fields)
    assert attention.shape == (len(expected), blocks, size.heads, fields, fields)
    torch.testing.assert_close(attention.sum(4), torch.ones(attention.shape[:4]))


def test_pairs_and_levels_that_are_not_inputs_of_the_head_contribute_nothing() -> None:
    feed = tensors(a_feed(SCHEMA, [5]))
    upper = ExplainGraph(a_model(SCHEMA, STECConfig(embedding=8, pairs="upper")), SCHEMA)(**feed)[1]
    # The fields are in the model's order, categorical fields first. The graph's order is different.
    assert ((upper != 0).any(0).any(0).sum()) == 7 * 6 // 2
    assert (upper.diagonal(dim1=2, dim2=3) == 0).all()
    last = ExplainGraph(a_model(SCHEMA, STECConfig(embedding=8, fusion="last")), SCHEMA)(**feed)[1]
    assert (last[:, :2] == 0).all()
    assert (last[:, 2] != 0).any()


@needs_kernel
@settings(max_examples=examples(30), deadline=None)
@given(size=models(), seed=st.integers(0, 99))
def test_the_kernel_computes_every_option_that_is_a_constant(size: STECConfig, seed: int) -> None:
    model, feed = a_model(SCHEMA, size, seed), a_feed(SCHEMA, [3, 1, 9], seed)
    if option_without_kernel(model):
        with pytest.raises(ValueError, match="the kernel does not support"):
            kernel_graph(model, SCHEMA)
        return
    (logit,) = session_of(kernel_graph(model, SCHEMA)).run(["logit"], feed)
    np.testing.assert_allclose(logit, by_torch(model, SCHEMA, feed), rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("size", "option"),
    [
        (STECConfig(ffn=0), None),
        (STECConfig(interaction="separate"), 'interaction = "separate"'),
        (STECConfig(interaction="separate", fusion="last", last="block"), None),
        (STECConfig(interaction="xwx", pairs="upper", scale="mean", fusion="add"), None),
    ],
)
def test_an_option_that_the_kernel_cannot_compute_is_named(size: STECConfig, option: str | None) -> None:
    assert option_without_kernel(a_model(schema_of(1, 1, 0), size)) == option


@pytest.mark.parametrize("interaction", ["qk", "xwx", "separate"])
def test_the_screen_graph_computes_the_first_level_for_any_interaction(interaction: str) -> None:
    schema = mixed_schema(True)
    model, inputs = trained(schema, 0.3, interaction=interaction, pairs="upper"), request(schema, (20, 3))
    assert first_in_head(model) == 0
    head = model.head[0]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight[:, head.in_features // 3 :] = 0
    expected = PlainGraph(model, schema).double().eval()(**inputs)
    torch.testing.assert_close(ScreenGraph(model, schema)(**single(inputs)).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", EXPORTED, ids=str)
def test_onnxruntime_gives_the_models_logits_and_explanations(options: dict[str, Any], tmp_path: Path) -> None:
    schema: FeatureSchema = SCHEMA
    model = a_model(schema, STECConfig(embedding=8, ffn=16, embedding_std=0.3, **options))
    serving, explain = ServingGraph(model, schema), ExplainGraph(model, schema)
    graphs = {MODEL: to_onnx(serving, schema), EXPLAIN: to_onnx(explain, schema, EXPLANATION)}
    save_together(graphs, tmp_path)
    sessions = [onnxruntime.InferenceSession(str(tmp_path / name)) for name in (MODEL, EXPLAIN)]
    for sizes in ([1], [2, 255], [1] * TOKENS):
        feed = a_feed(schema, sizes)
        expected = by_torch(model, schema, feed)
        (logit,), explained = (session.run(None, feed) for session in sessions)
        for found in (logit, explained[0]):
            np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)
        for found, by_graph in zip(explained, explain(**tensors(feed)), strict=True):
            np.testing.assert_allclose(found, by_graph.numpy(), rtol=1e-4, atol=3e-5)
