"""The kernel's logits depend neither on the width of its vectors nor on the other candidates, not even by a bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import kernel
from contract.schema import Attention
from export.graphs.kernel import kernel_graph
from model.stec.stec import STECConfig
from tests.support.examples import examples
from tests.support.graphs import (
    Feed,
    a_feed,
    a_model,
    hide,
    needs_kernel,
    schema_of,
    session_of,
    with_missing_vectors,
)

pytestmark = pytest.mark.numeric
needs_both_widths = pytest.mark.skipif(
    not kernel.is_usable() or kernel.lanes() < 16, reason="the kernel is not usable, or this processor has no AVX-512"
)


@contextmanager
def at_most(lanes: int) -> Iterator[None]:
    """Limit the kernel to this many lanes during the block."""
    before = kernel.lanes()
    kernel.limit_lanes(lanes)
    try:
        yield
    finally:
        kernel.limit_lanes(before)


def in_both_widths(session: Any, feed: Feed) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits with eight lanes, and with sixteen where the kernel chooses them."""
    with at_most(8):
        (eight,) = session.run(["logit"], feed)
    (sixteen,) = session.run(["logit"], feed)
    return eight, sixteen


@needs_both_widths
@settings(max_examples=examples(60), deadline=None)
@given(
    fields=st.tuples(st.integers(1, 19), st.integers(1, 18), st.integers(0, 2)),
    heads=st.sampled_from([1, 2, 3]),
    head_width=st.sampled_from([1, 2, 5, 8]),
    blocks=st.integers(1, 3),
    ffn=st.sampled_from([0, 1, 7, 16, 33]),
    sizes=st.lists(st.integers(0, 33), min_size=1, max_size=6),
    attention=st.sampled_from(["full", "request"]),
    is_missing=st.booleans(),
    seed=st.integers(0, 99),
)
def test_both_widths_give_the_same_logits_bit_for_bit(
    fields: tuple[int, int, int],
    heads: int,
    head_width: int,
    blocks: int,
    ffn: int,
    sizes: list[int],
    attention: Attention,
    is_missing: bool,
    seed: int,
) -> None:
    schema = schema_of(*fields)
    if is_missing:
        schema = with_missing_vectors(schema)
    size = STECConfig(
        embedding=heads * head_width, blocks=blocks, heads=heads, ffn=ffn, embedding_std=0.3, attention=attention
    )
    feed = a_feed(schema, sizes, seed)
    session = session_of(kernel_graph(a_model(schema, size, seed), schema))
    eight, sixteen = in_both_widths(session, hide(feed) if is_missing else feed)
    np.testing.assert_array_equal(eight.view(np.int32), sixteen.view(np.int32))


@needs_both_widths
@pytest.mark.parametrize("attention", ["full", "request"])
def test_both_widths_give_the_same_logits_for_every_number_of_candidates(attention: Attention) -> None:
    schema = schema_of(6, 4, 1)
    model = a_model(schema, STECConfig(embedding=16, embedding_std=0.3, attention=attention))
    session = session_of(kernel_graph(model, schema))
    for candidates in range(1, 34):
        for sizes in ([candidates], [1] * candidates, [candidates, 1, candidates, 9, 40]):
            eight, sixteen = in_both_widths(session, a_feed(schema, sizes, candidates))
            np.testing.assert_array_equal(eight.view(np.int32), sixteen.view(np.int32))


@needs_kernel
@pytest.mark.parametrize("attention", ["full", "request"])
def test_a_candidates_logit_does_not_depend_on_the_other_candidates(attention: Attention) -> None:
    schema = schema_of(5, 3, 1)
    session = session_of(kernel_graph(a_model(schema, STECConfig(embedding=8, attention=attention)), schema))
    feed = a_feed(schema, [3, 1, 30, 9, 1, 1])
    (together,) = session.run(["logit"], feed)
    for row, request in enumerate(feed["request_index"]):
        one = {name: a[[request]] if name.startswith("context") else a[[row]] for name, a in feed.items()}
        (alone,) = session.run(["logit"], one | {"request_index": np.zeros(1, np.int64)})
        assert alone[0] == together[row]


@needs_kernel
def test_a_limit_that_the_processor_cannot_reach_has_no_effect() -> None:
    lanes = kernel.lanes()
    with at_most(8):
        assert kernel.lanes() == 8
    kernel.limit_lanes(1000)
    assert kernel.lanes() == lanes
