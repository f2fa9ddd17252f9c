"""The share graph: how much each field adds to the logit of a model that is not a sum over fields."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract.bundle import EXPLANATION
from contract.schema import FeatureSchema
from contract.vocabulary import MISSING
from export.graphs.plain import PlainGraph
from export.graphs.serving import serving_order
from export.graphs.share import ShareGraph
from export.onnx_file import to_onnx
from model.layers import fields_of
from model.zoo import MODELS, build
from tests.support.graphs import TOKENS, mixed_schema, request, session_of, single
from tests.support.models import small

pytestmark = pytest.mark.numeric

BASELINES = [name for name in MODELS if name != "stec"]


def a_model(name: str, schema: FeatureSchema) -> nn.Module:
    torch.manual_seed(2)
    context = {"context1": ("f0",)} if name == "finalmlp" else {}
    fields = fields_of(schema, [TOKENS] * len(schema.select("categorical")))
    return build(fields, small(name, **context)).double().eval()


Explained = tuple[Tensor, Tensor, Tensor, Tensor]


def explained(model: nn.Module, schema: FeatureSchema, inputs: dict[str, Tensor]) -> Explained:
    found: Explained = ShareGraph(model.float(), schema)(**single(inputs))
    return found


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("numeric", [False, True])
def test_the_shares_and_the_bias_add_up_to_the_models_logit(name: str, numeric: bool) -> None:
    schema = mixed_schema(numeric)
    model, inputs = a_model(name, schema), request(schema, (3, 1, 4))
    expected = PlainGraph(model, schema)(**inputs)
    logit_N, contribution_NLFF, attention, bias_N = explained(model, schema, inputs)
    fields = len(schema.fields)
    assert contribution_NLFF.shape == (8, 1, fields, fields)
    assert attention.shape == (8, 0, 1, fields, fields)
    tolerance = 1e-3 if name == "afn" else 1e-5  # AFN applies an exponential in float32.
    torch.testing.assert_close(logit_N.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(contribution_NLFF.sum((1, 2, 3)) + bias_N, logit_N, rtol=0, atol=tolerance)
    assert (contribution_NLFF[:, 0] * (1 - torch.eye(fields))).abs().max() == 0


# Every run tests one model of each kind: linear, with a cross network, with logarithms, and, in
# tests/export/graphs/test_missing.py, factorized and with attention.
KINDS = ("lr", "dcnv2", "afn")


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.full) for name in BASELINES]
)
def test_onnxruntime_scores_and_explains_as_torch_does(name: str) -> None:
    schema = mixed_schema(True)
    model, inputs = a_model(name, schema), request(schema, (3, 1, 4))
    expected = explained(model, schema, inputs)
    exported = to_onnx(ShareGraph(model, schema), schema, EXPLANATION)
    feed = {name: tensor.numpy() for name, tensor in single(inputs).items()}
    found = session_of(exported).run(list(EXPLANATION), feed)
    for array, tensor in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(array), tensor, rtol=1e-4, atol=1e-4)


def value(model: nn.Module, schema: FeatureSchema, row: dict[str, Tensor], present: set[int]) -> float:
    """Return the logit when only these fields (positions in serving order) are present and all others are missing."""
    known: dict[str, Any] = {name: t.clone() for name, t in row.items()}
    for position, field in enumerate(schema.in_serving_order()):
        if position in present:
            continue
        kind = "ids" if field.kind == "categorical" else "values"
        column = schema.select(field.kind, field.side).index(field)
        known[f"{field.side}_{kind}"][:, column] = MISSING if field.kind == "categorical" else 0.0
    return float(PlainGraph(model, schema)(**known))


def shapley(model: nn.Module, schema: FeatureSchema, row: dict[str, Tensor], field: int) -> float:
    """Compute the Shapley value from its definition, over every set of the other fields."""
    count = len(schema.fields)
    others = [f for f in range(count) if f != field]
    total = 0.0
    for size in range(count):
        weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
        for chosen in itertools.combinations(others, size):
            gain = value(model, schema, row, {*chosen, field}) - value(model, schema, row, {*chosen})
            total += weight * gain
    return total


@pytest.mark.parametrize("name", ["lr", "fm"])
def test_without_interactions_of_three_fields_a_share_is_the_shapley_value(name: str) -> None:
    """Half of the orders are the reverse of the other half, so each pair is split evenly between its fields."""
    schema = mixed_schema(True)
    model, row = a_model(name, schema), request(schema, (1,))
    assert sorted(serving_order(schema)) == list(range(len(schema.fields)))
    expected = [shapley(model, schema, row, field) for field in range(len(schema.fields))]
    contribution_NLFF = explained(model, schema, row)[1]
    found = contribution_NLFF[0, 0].diagonal().double()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)
    assert found.abs().max() > 0.01
