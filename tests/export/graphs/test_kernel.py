"""The kernel gives the same logits as the model, for any batch and size, and never reads out of bounds."""

import shutil
import subprocess
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kernel
from contract.schema import Attention
from export.graphs.kernel import kernel_graph
from model.stec.stec import STECConfig
from tests.support.examples import examples
from tests.support.graphs import TOKENS, a_feed, a_model, by_torch, needs_kernel, schema_of, session_of

pytestmark = pytest.mark.numeric


@needs_kernel
@settings(max_examples=examples(40), deadline=None)
@example(fields=(5, 6, 0), heads=1, width=2, blocks=1, ffn=7, sizes=[25, 1, 1], attention="full", seed=56)
@given(
    fields=st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(0, 2)),
    heads=st.sampled_from([1, 2, 3]),
    width=st.sampled_from([2, 5, 8]),
    blocks=st.integers(1, 3),
    ffn=st.sampled_from([0, 1, 7, 16]),
    sizes=st.lists(st.sampled_from([1, 2, 7, 8, 9, 25]), min_size=1, max_size=9),
    attention=st.sampled_from(["full", "request"]),
    seed=st.integers(0, 99),
)
def test_the_kernel_gives_the_models_logits(
    fields: tuple[int, int, int],
    heads: int,
    width: int,
    blocks: int,
    ffn: int,
    sizes: list[int],
    attention: Attention,
    seed: int,
) -> None:
    schema = schema_of(*fields)
    size = STECConfig(
        embedding=heads * width, blocks=blocks, heads=heads, ffn=ffn, embedding_std=0.3, attention=attention
    )
    model, feed = a_model(schema, size, seed), a_feed(schema, sizes, seed)
    (logit,) = session_of(kernel_graph(model, schema)).run(["logit"], feed)
    # The layer norm of two nearly equal numbers multiplies their rounding errors by up to 1 / sqrt(1e-5) = 316.
    atol = 3e-4 if heads * width == 2 else 3e-5
    np.testing.assert_allclose(logit, by_torch(model, schema, feed), rtol=0, atol=atol)


@needs_kernel
@pytest.mark.parametrize("attention", ["full", "request"])
def test_attention_scores_of_any_size_are_safe(attention: Attention) -> None:
    """Scores in the hundreds would overflow exp()."""
    schema = schema_of(4, 3, 0)
    model = a_model(schema, STECConfig(embedding=16, embedding_std=20.0, attention=attention))
    feed = a_feed(schema, [40])
    (logit,) = session_of(kernel_graph(model, schema)).run(["logit"], feed)
    assert np.isfinite(logit).all()
    expected = by_torch(model, schema, feed)
    np.testing.assert_allclose(logit, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


@needs_kernel
def test_a_request_without_candidates_has_no_logits() -> None:
    schema = schema_of(2, 2, 0)
    session = session_of(kernel_graph(a_model(schema, STECConfig(embedding=8)), schema))
    assert session.run(["logit"], a_feed(schema, [0]))[0].shape == (0,)


@needs_kernel
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("context_ids", -1, "a context id is out of range"),
        ("context_ids", 10**12, "a context id is out of range"),
        ("candidate_ids", -(2**63), "a candidate id is out of range"),
        ("candidate_ids", 4 * TOKENS, "a candidate id is out of range"),
        ("request_index", 1, "a request index is out of range"),
        ("request_index", -1, "a request index is out of range"),
    ],
)
def test_out_of_range_ids_are_an_error(name: str, value: int, words: str) -> None:
    schema = schema_of(2, 2, 0)
    session = session_of(kernel_graph(a_model(schema, STECConfig(embedding=8)), schema))
    feed = a_feed(schema, [3])
    feed[name].flat[-1] = value
    with pytest.raises(Exception, match=words):
        session.run(["logit"], feed)


@needs_kernel
@pytest.mark.parametrize(
    ("constant", "changed", "words"),
    [
        ("weights", lambda a: a[:-1], "weights: wrong number"),
        ("table", lambda a: a[:, :-1], "the embedding table"),
        ("offsets", lambda a: a[:-1], "offsets"),
        ("sizes", lambda a: a[:-1], "sizes has not the nine"),
        ("sizes", lambda a: a * -1, "sizes: a number is out of range"),
        ("sizes", lambda a: a * 2**40, "sizes: a number is out of range"),
        ("offsets", lambda a: a + 3 * TOKENS + 1, "offset is out of range"),
        ("offsets", lambda a: a + TOKENS, "id is out of range"),
        ("offsets", lambda a: a - 10**9, "offset is out of range"),
        ("offsets", lambda a: np.full_like(a, -(2**63)), "offset is out of range"),
    ],
)
def test_constants_with_wrong_sizes_are_an_error(constant: str, changed: Any, words: str) -> None:
    schema = schema_of(2, 2, 0)
    graph = kernel_graph(a_model(schema, STECConfig(embedding=8)), schema)
    for tensor in graph.graph.initializer:
        if tensor.name == constant:
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed(onnx.numpy_helper.to_array(tensor)), constant))
    with pytest.raises(Exception, match=words):
        session_of(graph).run(["logit"], a_feed(schema, [3]))


def test_the_error_for_a_kernel_that_was_not_built_says_how_to_fix_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(kernel.NoKernel, match=r"was not built: run `make kernel`, or install"):
        kernel.register(onnxruntime.SessionOptions())
    assert not kernel.is_usable()


def test_an_invalid_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"_stec{EXTENSION_SUFFIXES[0]}").write_text("no library")
    monkeypatch.setattr(kernel, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(kernel.NoKernel, match="cannot be used"):
        kernel.register(onnxruntime.SessionOptions())


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_library_of_an_earlier_version_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "earlier.cpp"
    source.write_text('extern "C" void* RegisterCustomOps(void*, const void*) { return nullptr; }')
    library = tmp_path / f"_stec{EXTENSION_SUFFIXES[0]}"
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    monkeypatch.setattr(kernel, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(kernel.NoKernel, match=r"built from an earlier version: run `make kernel`"):
        kernel.register(onnxruntime.SessionOptions())
