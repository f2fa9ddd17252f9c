"""The folded graph gives the same logits as the model."""

from typing import Any

import pytest
import torch

from contract.schema import Attention
from export.graphs.block import blocks_of, score_bounds
from export.graphs.plain import PlainGraph
from export.graphs.serving import ScreenGraph, ServingGraph, serving_order
from tests.support.graphs import TOKENS, mixed_schema, request, single, trained

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("attention", ["full", "request"])
@pytest.mark.parametrize("numeric", [False, True])
@pytest.mark.parametrize("sizes", [(1,), (2,), (257,), (3, 1, 20)])
def test_the_folded_graph_gives_the_models_logits(numeric: bool, sizes: tuple[int, ...], attention: Attention) -> None:
    schema = mixed_schema(numeric)
    model, inputs = trained(schema, 0.3, attention=attention), request(schema, sizes)
    expected = PlainGraph(model, schema).double().eval()(**inputs)
    torch.testing.assert_close(ServingGraph(model, schema)(**single(inputs)).double(), expected, rtol=0, atol=1e-5)


def test_near_constant_fields_at_a_large_scale_stay_within_the_tolerance() -> None:
    schema = mixed_schema(False)
    model, inputs = trained(schema, 3.0, near_constant=True), request(schema, (257,))
    inputs["context_ids"][:, :] = 2  # For the most frequent value, all constants must cancel.
    expected = PlainGraph(model, schema).double().eval()(**inputs).sigmoid()
    answered = ServingGraph(model, schema)(**single(inputs)).double().sigmoid()
    assert (answered - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("std", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("options", [{}, {"interaction": "xwx", "ffn": 0}, {"scale": "mean"}], ids=str)
def test_no_attention_score_exceeds_its_proven_bound(std: float, options: dict[str, Any]) -> None:
    schema = mixed_schema(True)
    model = trained(schema, std, **options).double()
    ids = torch.randint(TOKENS, (500, len(schema.select("categorical"))))
    values = (torch.randn(500, len(schema.select("numeric"))).double() * 1e4).clamp(-1e4, 1e4)
    x = model.embedding(ids, values)
    for block, bound in zip(blocks_of(model), score_bounds(model), strict=True):
        y, q, k = block(x, plain=False)
        q, k = (t.unflatten(2, (block.heads, -1)).transpose(1, 2) for t in (q, k))
        largest = (q @ k.transpose(2, 3)).abs().max().item() / block.score_divisor
        assert largest <= bound
        x = y


def test_scores_that_could_overflow_use_the_safe_softmax() -> None:
    schema = mixed_schema(False)
    assert [b.scores_are_bounded for b in ServingGraph(trained(schema, 0.1), schema).blocks] == [True, True]
    wide = trained(schema, 30.0)
    graph, inputs = ServingGraph(wide, schema), request(schema, (50,))
    assert not graph.blocks[0].scores_are_bounded
    expected = PlainGraph(wide, schema).double().eval()(**inputs)
    torch.testing.assert_close(graph(**single(inputs)).double(), expected, rtol=1e-3, atol=1e-3)


def test_folding_does_not_change_the_model() -> None:
    schema = mixed_schema(True)
    model = trained(schema, 0.3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    ServingGraph(model, schema)
    assert all(torch.equal(t, before[name]) and t.dtype == before[name].dtype for name, t in model.state_dict().items())


def test_the_serving_order_contains_every_field_once() -> None:
    schema = mixed_schema(True)
    assert sorted(serving_order(schema)) == list(range(len(schema.fields)))


def test_the_screen_graph_is_the_model_with_the_other_levels_at_their_mean() -> None:
    """Set the head's weights for the other levels to zero, so that only the first level remains."""
    schema = mixed_schema(True)
    model, inputs = trained(schema, 0.3), request(schema, (20, 3))
    head = model.head[0]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight[:, head.in_features // 3 :] = 0
    expected = PlainGraph(model, schema).double().eval()(**inputs)
    torch.testing.assert_close(ScreenGraph(model, schema)(**single(inputs)).double(), expected, rtol=0, atol=1e-5)
