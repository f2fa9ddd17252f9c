"""Every graph gives the model's logits for missing numbers, which are NaN and have their own vectors."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn

import kernel
from contract.bundle import EXPLANATION
from contract.schema import FeatureSchema, Field
from export.bundle import scoring_graph
from export.graphs.block import blocks_of, score_bounds
from export.graphs.explain import ExplainGraph
from export.graphs.kernel import kernel_graph
from export.graphs.plain import BaselineGraph
from export.graphs.serving import ScreenGraph, ServingGraph
from export.graphs.share import ShareGraph
from export.onnx_file import to_onnx
from model.layers import FeatureEmbedding, fields_of
from model.stec.stec import STEC, STECConfig
from model.zoo import MODELS, build
from tests.support.examples import examples
from tests.support.graphs import (
    TOKENS,
    Feed,
    a_feed,
    a_model,
    by_torch,
    hide,
    needs_kernel,
    schema_of,
    session_of,
    with_missing_vectors,
)
from tests.support.models import small
from tests.support.stec_models import models

pytestmark = pytest.mark.numeric

SCHEMA = with_missing_vectors(schema_of(3, 2, 2))
SIZES = [3, 1, 9]
BASELINES = [name for name in MODELS if name != "stec"]
# tests/export/graphs/test_share.py exports other models without missing numbers.
USUAL = ("fm", "autoint")


def a_baseline(name: str, schema: FeatureSchema = SCHEMA) -> nn.Module:
    torch.manual_seed(2)
    context = {"context1": ("u0", "un0")} if name == "finalmlp" else {}
    model = build(fields_of(schema, [TOKENS] * len(schema.select("categorical"))), small(name, **context))
    return model.eval()


def tensors(feed: Feed) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in feed.items()}


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.full) for name in BASELINES]
)
def test_onnxruntime_scores_and_explains_missing_numbers_as_torch_does(name: str) -> None:
    model, feed = a_baseline(name), hide(a_feed(SCHEMA, SIZES))
    expected = by_torch(model, SCHEMA, feed)
    tolerance = 1e-3 if name == "afn" else 3e-5  # AFN applies an exponential in float32.
    (logit,) = session_of(to_onnx(scoring_graph(model, SCHEMA), SCHEMA)).run(None, feed)
    np.testing.assert_allclose(logit, expected, rtol=0, atol=tolerance)
    explain = session_of(to_onnx(ShareGraph(model, SCHEMA), SCHEMA, EXPLANATION))
    logit, contribution, _, bias = explain.run(list(EXPLANATION), feed)
    np.testing.assert_allclose(logit, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(contribution.sum((1, 2, 3)) + bias, expected, rtol=0, atol=tolerance)


def test_a_stec_with_hidden_layers_in_its_head_scores_missing_numbers() -> None:
    model = a_model(SCHEMA, STECConfig(embedding=8, blocks=1, ffn=16, mlp=(6,)))
    feed = hide(a_feed(SCHEMA, SIZES))
    (logit,) = session_of(to_onnx(scoring_graph(model, SCHEMA), SCHEMA)).run(None, feed)
    np.testing.assert_allclose(logit, by_torch(model, SCHEMA, feed), rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_a_missing_numbers_vector_changes_the_logit_of_every_model(name: str) -> None:
    model, feed = a_baseline(name), hide(a_feed(SCHEMA, [4]), share=1.0)
    before = BaselineGraph(model, SCHEMA)(**tensors(feed))
    for table in model.embeddings:  # type: ignore[union-attr]
        assert isinstance(table, FeatureEmbedding)
        assert table.beta is not None
        nn.init.normal_(table.beta)
    assert (BaselineGraph(model, SCHEMA)(**tensors(feed)) != before).all()


@pytest.mark.parametrize("name", BASELINES)
def test_a_missing_number_has_no_share_because_shares_start_with_every_field_missing(name: str) -> None:
    model, feed = a_baseline(name), hide(a_feed(SCHEMA, SIZES))
    _, contribution_NLFF, _, _ = ShareGraph(model, SCHEMA)(**tensors(feed))
    share_NF = contribution_NLFF[:, 0].diagonal(dim1=1, dim2=2)
    absent_NF = torch.zeros_like(share_NF, dtype=torch.bool)
    for position, field in enumerate(SCHEMA.in_serving_order()):
        if field.kind == "numeric":
            column = feed[f"{field.side}_values"][:, SCHEMA.select("numeric", field.side).index(field)]
            rows = feed["request_index"] if field.side == "context" else slice(None)
            absent_NF[:, position] = torch.from_numpy(np.isnan(column))[rows]
    assert absent_NF.any()
    assert share_NF[absent_NF].abs().max() == 0
    assert share_NF[~absent_NF].abs().max() > 0


@settings(max_examples=examples(30), deadline=None)
@given(size=models(), seed=st.integers(0, 99))
def test_the_folded_graph_and_the_contributions_give_the_models_logit(size: STECConfig, seed: int) -> None:
    model, feed = a_model(SCHEMA, size, seed), hide(a_feed(SCHEMA, SIZES, seed))
    expected = torch.from_numpy(by_torch(model, SCHEMA, feed))
    inputs = tensors(feed)
    torch.testing.assert_close(ServingGraph(model, SCHEMA)(**inputs).double(), expected, rtol=0, atol=3e-5)
    _, contribution, _, bias = ExplainGraph(model, SCHEMA)(**inputs)
    torch.testing.assert_close(contribution.double().sum((1, 2, 3)) + bias, expected, rtol=0, atol=3e-5)


STECS = {
    "full": a_model(SCHEMA, STECConfig(embedding=8, ffn=16, embedding_std=0.3)),
    "request": a_model(SCHEMA, STECConfig(embedding=8, blocks=1, ffn=16, embedding_std=0.3, attention="request")),
}
Run = Callable[[Feed], NDArray[np.float32]]


@pytest.fixture(scope="module", params=STECS)
def exported(request: pytest.FixtureRequest) -> tuple[STEC, Mapping[str, Run]]:
    """A STEC, and its graphs in onnxruntime."""
    model = STECS[request.param]
    graphs = {
        "serving": to_onnx(ServingGraph(model, SCHEMA), SCHEMA),
        "explain": to_onnx(ExplainGraph(model, SCHEMA), SCHEMA, EXPLANATION),
    }
    if kernel.is_usable():
        graphs["kernel"] = kernel_graph(model, SCHEMA)
    sessions = {name: session_of(graph) for name, graph in graphs.items()}
    return model, {name: lambda feed, s=session: s.run(["logit"], feed)[0] for name, session in sessions.items()}


def patterns(rows: int) -> st.SearchStrategy[NDArray[np.bool_]]:
    return arrays(np.bool_, (rows, 2))


@settings(max_examples=examples(100), deadline=None)
@given(context=patterns(len(SIZES)), candidate=patterns(sum(SIZES)), seed=st.integers(0, 99))
def test_every_graph_gives_the_models_logits_for_any_pattern_of_missing_numbers(
    exported: tuple[STEC, Mapping[str, Run]], context: NDArray[np.bool_], candidate: NDArray[np.bool_], seed: int
) -> None:
    model, graphs = exported
    feed = a_feed(SCHEMA, SIZES, seed)
    feed["context_values"][context] = np.nan
    feed["candidate_values"][candidate] = np.nan
    expected = by_torch(model, SCHEMA, feed)
    for name, run in graphs.items():
        np.testing.assert_allclose(run(feed), expected, rtol=0, atol=3e-5, err_msg=name)


def one_of(model: STEC, alpha: Tensor, beta: Tensor) -> STEC:
    """Return a copy of a model with these vectors of numbers and of missing numbers."""
    changed = a_model(SCHEMA, STECConfig(embedding=8, ffn=16, embedding_std=0.3))
    changed.load_state_dict(model.state_dict() | {"embedding.alpha": alpha, "embedding.beta": beta})
    return changed


def test_a_missing_number_contributes_to_the_logit_like_a_number_1_with_the_same_vector() -> None:
    model = STECS["full"]
    assert model.embedding.beta is not None
    absent = hide(a_feed(SCHEMA, SIZES), share=1.0)
    ones = absent | {name: np.ones_like(array) for name, array in absent.items() if "values" in name}
    same = one_of(model, model.embedding.beta, torch.zeros_like(model.embedding.beta))
    for graph in (ServingGraph, ScreenGraph, ExplainGraph):
        found, expected = graph(model, SCHEMA)(**tensors(absent)), graph(same, SCHEMA)(**tensors(ones))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    zero = one_of(model, model.embedding.alpha, torch.zeros_like(model.embedding.beta))
    with_vector, at_mean = (ExplainGraph(m, SCHEMA)(**tensors(absent))[1] for m in (model, zero))
    number = [f.kind for f in SCHEMA.in_serving_order()].index("numeric")
    assert (with_vector - at_mean)[:, 0, number].abs().max() > 1e-3  # The field's pairs at level 0.


def test_no_attention_score_exceeds_its_bound_if_a_missing_numbers_vector_is_the_longest() -> None:
    model = STECS["full"]
    alpha = model.embedding.alpha
    wide = one_of(model, 1e-6 * alpha, 1e3 * torch.ones_like(alpha)).double()
    feed = hide(a_feed(SCHEMA, [50]), share=1.0)
    x = wide.embedding(torch.zeros(50, 5, dtype=torch.int64), torch.full((50, 4), torch.nan).double())
    for block, bound in zip(blocks_of(wide), score_bounds(wide), strict=True):
        y, q, k = block(x, plain=False)
        q, k = (t.unflatten(2, (block.heads, -1)).transpose(1, 2) for t in (q, k))
        assert (q @ k.transpose(2, 3)).abs().max().item() / block.score_divisor <= bound
        x = y
    assert ServingGraph(wide, SCHEMA)(**tensors(feed)).isfinite().all()


@needs_kernel
def test_fields_with_and_without_a_missing_vector_can_be_mixed() -> None:
    """The values of a field without a missing vector are never NaN."""
    fields = [msgspec.structs.replace(f, missing_vector=True) if f.name == "un0" else f for f in SCHEMA_WITHOUT.fields]
    schema = FeatureSchema((Field("x", "context", "numeric"), *fields))
    model = a_model(schema, STECConfig(embedding=8, blocks=1, ffn=16, embedding_std=0.3))
    feed = a_feed(schema, SIZES)
    column = [f.name for f in schema.select("numeric", "context")].index("un0")
    feed["context_values"][:, column] = np.nan
    expected = by_torch(model, schema, feed)
    for graph in (to_onnx(ServingGraph(model, schema), schema), kernel_graph(model, schema)):
        np.testing.assert_allclose(session_of(graph).run(["logit"], feed)[0], expected, rtol=0, atol=3e-5)


SCHEMA_WITHOUT = schema_of(3, 2, 2)


def test_a_model_without_missing_vectors_has_none_in_its_weights_and_graphs() -> None:
    model = a_model(SCHEMA_WITHOUT, STECConfig(embedding=8, blocks=1, ffn=16))
    assert not [name for name in model.state_dict() if name.endswith("beta")]
    for graph in (ServingGraph, ExplainGraph, ScreenGraph):
        outputs = EXPLANATION if graph is ExplainGraph else EXPLANATION[:1]
        nodes = to_onnx(graph(model, SCHEMA_WITHOUT), SCHEMA_WITHOUT, outputs).graph.node
        assert not {node.op_type for node in nodes} & {"IsNaN", "Where"}
    (alpha,) = (t for t in kernel_graph(model, SCHEMA_WITHOUT).graph.initializer if t.name == "alpha")
    assert [*alpha.dims] == [4, 8]


@needs_kernel
def test_without_missing_vectors_nan_is_not_hidden() -> None:
    model, feed = a_model(SCHEMA_WITHOUT, STECConfig(embedding=8, ffn=16)), hide(a_feed(SCHEMA_WITHOUT, SIZES), 1.0)
    (logit,) = session_of(kernel_graph(model, SCHEMA_WITHOUT)).run(["logit"], feed)
    assert np.isnan(logit).all()


@needs_kernel
@pytest.mark.parametrize("rows", [0, 3, 5, 7, 9, 11, 13, 16])
def test_another_number_of_vectors_is_an_error(rows: int) -> None:
    graph = kernel_graph(STECS["full"], SCHEMA)
    for tensor in graph.graph.initializer:
        if tensor.name == "alpha":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((rows, 8), np.float32), "alpha"))
    with pytest.raises(Exception, match=r"alpha is not \[numeric fields, width\], with or without"):
        session_of(graph).run(["logit"], a_feed(SCHEMA, [3]))


@needs_kernel
@pytest.mark.parametrize("schema", [SCHEMA, SCHEMA_WITHOUT], ids=["with missing vectors", "without"])
def test_the_kernel_adds_offsets_to_the_vectors_of_numbers(schema: FeatureSchema) -> None:
    """Shifting all numbers of a field by c moves their vectors by c * alpha."""
    model = a_model(schema, STECConfig(embedding=8, ffn=16, embedding_std=0.3))
    feed = a_feed(schema, SIZES)
    if schema is SCHEMA:
        feed = hide(feed)
    c = torch.linspace(-2, 2, 4)
    numeric = schema.select("numeric")
    shifted = dict(feed)
    for side in ("context", "candidate"):
        columns = [numeric.index(field) for field in schema.select("numeric", side)]
        shifted[f"{side}_values"] = feed[f"{side}_values"] + c[columns].numpy()
    expected = by_torch(model, schema, shifted)
    model.embedding.offset = model.embedding.alpha.detach() * c[:, None]
    (logit,) = session_of(kernel_graph(model, schema)).run(["logit"], feed)
    np.testing.assert_allclose(logit, expected, rtol=0, atol=3e-5)


@needs_kernel
def test_a_model_with_offsets_but_without_missing_vectors_does_not_hide_nan() -> None:
    model, feed = a_model(SCHEMA_WITHOUT, STECConfig(embedding=8, ffn=16)), hide(a_feed(SCHEMA_WITHOUT, SIZES), 1.0)
    model.embedding.offset = torch.zeros_like(model.embedding.alpha)
    graph = kernel_graph(model, SCHEMA_WITHOUT)
    assert np.isnan(session_of(graph).run(["logit"], feed)[0]).all()


def test_a_batchs_gradients_are_finite_and_train_both_vectors() -> None:
    embedding = STECS["full"].embedding
    assert embedding.beta is not None
    values = torch.tensor([[1.0, torch.nan, 2.0, torch.nan], [torch.nan, 3.0, 1.0, torch.nan]])
    x: Any = embedding(torch.zeros(2, 5, dtype=torch.int64), values)
    by_alpha, by_beta = torch.autograd.grad(x.sum(), [embedding.alpha, embedding.beta])
    assert by_alpha[:, 0].tolist() == [1, 3, 3, 0]
    assert by_beta[:, 0].tolist() == [1, 1, 0, 2]
