"""Embedding norms and small eps are folded exactly, and float32 stays accurate in serving.

docs/decisions/0008-model-options.md states the bound on the rounding errors.
"""

from typing import Any

import numpy as np
import pytest
import torch

from contract.schema import FeatureSchema
from export.bundle import scoring_graph
from export.graphs.embedding import exact_copy
from export.graphs.explain import ExplainGraph
from export.graphs.kernel import kernel_graph
from export.graphs.level import fold_levels
from export.graphs.pack import option_without_kernel
from export.graphs.plain import PlainGraph
from export.graphs.serving import ScreenGraph, ServingGraph
from export.onnx_file import to_onnx
from model.experiment_config import Training
from model.stec.attention import interaction
from model.stec.stec import STEC, STECConfig, stec_for
from model.training.batches import Split
from model.training.exact_statistics import measure_batch_norms
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
from tests.support.rounding import UNIT_ROUNDOFF

pytestmark = pytest.mark.numeric

SCHEMA = with_missing_vectors(schema_of(3, 2, 2))
CONSTANT, NEAR_CONSTANT = 2, 3  # the usual tokens of the first two fields
OPTIONS: list[dict[str, Any]] = [
    {"level_eps": 1e-12},
    {"level_eps": 0.0, "level_eps_relative": 0.01},
    {"embedding_norm": "batch", "layer_norm_eps": 5.0},
    {"embedding_norm": "rms"},
    {"embedding_norm": "batch", "level_eps": 0.0, "level_eps_relative": 0.01},
]


def rows(schema: FeatureSchema = SCHEMA, count: int = 4096) -> Split:
    """Return rows with a constant field, a field with one value in 99.9% of the rows, and missing numbers."""
    random = np.random.default_rng(0)
    ids = random.integers(2, TOKENS, (count, len(schema.select("categorical"))))
    ids[:, 0] = CONSTANT
    ids[random.random(count) < 0.999, 1] = NEAR_CONSTANT
    values = random.normal(size=(count, len(schema.select("numeric")))).astype(np.float32)
    values[random.random(values.shape) < 0.05] = np.nan
    return Split(ids, values, np.ones(count, np.float32))


def measured(schema: FeatureSchema = SCHEMA, **options: Any) -> STEC:
    """Return a model with the statistics that training measures, in which 1% of the tokens are unknown or missing."""
    torch.manual_seed(0)
    model = stec_for(schema, [TOKENS] * len(schema.select("categorical")), STECConfig(embedding=16, **options))
    measure_batch_norms(model, rows(schema), Training(batch_size=1024))
    return model


def requests(schema: FeatureSchema = SCHEMA) -> Feed:
    """Return requests of which a fifth of the tokens is unknown, and a fifth of all values is missing."""
    feed, random = hide(a_feed(schema, [1, 9, 30] * 4), 0.2), np.random.default_rng(3)
    for name in ("context_ids", "candidate_ids"):
        chance = random.random(feed[name].shape)
        feed[name][chance < 0.2] = 0
        feed[name][chance > 0.8] = 1
    return feed


def sum_of_sizes(model: STEC, ids: torch.Tensor, values: torch.Tensor) -> float:
    """Return the largest sum of the sizes of the terms that a row's logit consists of."""
    exact, total = exact_copy(model), torch.zeros(len(ids), dtype=torch.float64)
    levels = exact.levels(exact.embed(ids, values.double()))
    for folded, factors in zip(fold_levels(exact, range(exact.fields)), levels, strict=True):
        size_BFFD = interaction(*factors).abs() + folded.mean_DFF.permute(1, 2, 0).abs()
        total += (size_BFFD * folded.a_DFF.permute(1, 2, 0).abs()).sum((1, 2, 3))
    return float(total.max())


def model_inputs(model: STEC, feed: Feed) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the feed as ids and values in the model's order."""
    found: list[torch.Tensor] = []
    graph = PlainGraph(model, SCHEMA)
    graph.model.register_forward_pre_hook(lambda _, inputs: found.extend(inputs))
    graph(**{name: torch.from_numpy(array) for name, array in feed.items()})
    ids, values = found
    return ids, values


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


@pytest.mark.parametrize("std", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_serving_in_float32_stays_within_the_tolerance_and_the_bound(std: float, options: dict[str, Any]) -> None:
    model, feed = measured(embedding_std=std, **options), requests()
    expected = by_torch(model, SCHEMA, feed)
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    terms = sum_of_sizes(model, *model_inputs(model, feed))
    for logit in (ServingGraph(model, SCHEMA)(**tensors), ExplainGraph(model, SCHEMA)(**tensors)[0]):
        found = logit.numpy()
        assert np.abs(found - expected).max() <= 8 * UNIT_ROUNDOFF * terms
        np.testing.assert_allclose(sigmoid(found), sigmoid(expected), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("eps", "relative"), [(1e-12, 0.0), (0.0, 0.01)])
def test_only_a_relative_eps_limits_the_error_of_a_constant_pair_of_large_embeddings(
    eps: float, relative: float
) -> None:
    """Without unknown tokens in training, the pair's variance is 0, and its product is divided by sqrt(eps)."""
    torch.manual_seed(0)
    model = stec_for(
        SCHEMA, [TOKENS] * 5, STECConfig(embedding=16, embedding_std=1.0, level_eps=eps, level_eps_relative=relative)
    )
    measure_batch_norms(model, rows(), Training(batch_size=1024, unknown_rate=0.0))
    feed = hide(a_feed(SCHEMA, [30] * 4), 0.2)
    feed["context_ids"][:, 0] = CONSTANT
    feed["context_ids"][:, 1] = NEAR_CONSTANT
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    error = np.abs(ServingGraph(model, SCHEMA)(**tensors).numpy() - by_torch(model, SCHEMA, feed)).max()
    assert error <= 8 * UNIT_ROUNDOFF * sum_of_sizes(model, *model_inputs(model, feed))
    assert (error <= 1e-5) == (relative > 0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_screen_graph_contains_the_norms(options: dict[str, Any]) -> None:
    model, feed = measured(embedding_std=0.01, **options), requests()
    head = model.head[0]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight[:, head.in_features // 3 :] = 0
    found = ScreenGraph(model, SCHEMA)(**{name: torch.from_numpy(array) for name, array in feed.items()})
    expected = by_torch(model, SCHEMA, feed)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("norm", ["batch", "rms"])
def test_the_folded_embedding_gives_the_normalized_vectors(norm: Any) -> None:
    model = measured(embedding_norm=norm)
    folded = exact_copy(model)
    ids = torch.arange(TOKENS)[:, None].expand(-1, 5)
    values = torch.randn(TOKENS, 4)
    values[0] = torch.nan
    expected = model.double().eval().embed(ids, values.double())
    torch.testing.assert_close(folded.embedding(ids, values.double()), expected, rtol=1e-12, atol=1e-12)
    assert folded.embedding_norm is None
    assert (folded.embedding.offset is not None) == (norm == "batch")


@pytest.mark.parametrize("fields", [(2, 1, 0), (1, 1, 2)])
@pytest.mark.parametrize("norm", ["batch", "rms"])
def test_models_with_and_without_numeric_fields_are_folded(fields: tuple[int, int, int], norm: Any) -> None:
    schema = schema_of(*fields)
    model, feed = a_model(schema, STECConfig(embedding=8, ffn=16, embedding_norm=norm)), a_feed(schema, [3, 1, 9])
    expected = by_torch(model, schema, feed)
    (logit,) = session_of(to_onnx(ServingGraph(model, schema), schema)).run(["logit"], feed)
    np.testing.assert_allclose(logit, expected, rtol=1e-6, atol=1e-5)


def test_the_graph_of_an_mlp_head_has_the_norms_in_its_tables() -> None:
    size = STECConfig(embedding=8, mlp=(6,), embedding_norm="batch", level_eps=0.0, level_eps_relative=0.01)
    model, feed = a_model(SCHEMA, size), hide(a_feed(SCHEMA, [3, 1, 9]))
    graph = scoring_graph(model, SCHEMA)
    assert not [name for name, _ in graph.named_buffers() if "embedding_norm" in name]
    (logit,) = session_of(to_onnx(graph, SCHEMA)).run(["logit"], feed)
    np.testing.assert_allclose(logit, by_torch(model, SCHEMA, feed), rtol=0, atol=3e-5)


@needs_kernel
@pytest.mark.parametrize("norm", ["batch", "rms"])
def test_the_kernel_uses_the_folded_table(norm: Any) -> None:
    schema = schema_of(3, 2, 0)
    model, feed = measured(schema, embedding_norm=norm, layer_norm_eps=5.0, level_eps=1e-7), requests(schema)
    assert option_without_kernel(model) is None
    (logit,) = session_of(kernel_graph(model, schema)).run(["logit"], feed)
    expected = by_torch(model, schema, feed)
    np.testing.assert_allclose(logit, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@needs_kernel
@pytest.mark.parametrize("norm", ["batch", "rms"])
def test_the_kernel_adds_the_offsets_of_folded_numbers(norm: Any) -> None:
    model, feed = measured(embedding_norm=norm), requests()
    (logit,) = session_of(kernel_graph(model, SCHEMA)).run(["logit"], feed)
    expected = by_torch(model, SCHEMA, feed)
    np.testing.assert_allclose(logit, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
