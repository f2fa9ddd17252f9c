"""The explanation graph: its contributions add up to the logit."""

import pytest
import torch

from contract.schema import Attention
from export.graphs.explain import ExplainGraph
from export.graphs.plain import PlainGraph
from export.graphs.serving import serving_order
from model.stec.attention import attention_weights, interaction
from tests.support.graphs import mixed_schema, request, single, trained

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("attention", ["full", "request"])
@pytest.mark.parametrize("numeric", [False, True])
def test_contributions_and_bias_add_up_to_the_models_logit(numeric: bool, attention: Attention) -> None:
    schema = mixed_schema(numeric)
    model, inputs = trained(schema, 0.3, attention=attention), request(schema, (3, 1, 20))
    expected = PlainGraph(model, schema).double().eval()(**inputs)
    logit, contribution, _, bias = ExplainGraph(model, schema)(**single(inputs))
    torch.testing.assert_close(logit.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(contribution.double().sum((1, 2, 3)) + bias, expected, rtol=0, atol=1e-5)


def test_a_contribution_is_the_head_weight_times_the_normalized_interaction() -> None:
    """Compare the contribution of every pair and level with the plain form of the model."""
    schema = mixed_schema(False)
    model, inputs = trained(schema, 0.3), request(schema, (9,))
    _, contribution, attention, _ = ExplainGraph(model, schema)(**single(inputs))
    order, fields = serving_order(schema), len(schema.fields)
    model = model.double()
    plain = PlainGraph(model, schema)
    ids = torch.cat([inputs["context_ids"].index_select(0, inputs["request_index"]), inputs["candidate_ids"]], 1)
    levels = model.levels(model.embedding(ids[:, plain.categorical], torch.empty(9, 0, dtype=torch.float64)))
    head = model.head[0]
    assert isinstance(head, torch.nn.Linear)
    for level, ((q, k), norm, weight) in enumerate(zip(levels, model.norms, head.weight[0].chunk(3), strict=True)):
        beta = norm.bias  # The bias is not part of a contribution.
        share = (norm(interaction(q, k).flatten(1)) - beta) * weight
        expected = share.view(9, fields, fields, -1).sum(3)[:, order][:, :, order]
        torch.testing.assert_close(contribution[:, level].double(), expected.detach(), rtol=1e-4, atol=1e-5)
        if level < 2:
            weights = attention_weights(q, k, 2, 8**0.5)[:, order][:, :, order].permute(0, 3, 1, 2)
            torch.testing.assert_close(attention[:, level].double(), weights.detach(), rtol=1e-4, atol=1e-6)


def test_an_mlp_head_has_no_contributions() -> None:
    schema = mixed_schema(False)
    model = trained(schema, 0.3)
    model.head = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 1))
    with pytest.raises(ValueError, match="only a linear head can be folded"):
        ExplainGraph(model, schema)
