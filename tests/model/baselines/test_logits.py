"""Compare the logits of each baseline with its formula, written as slow loops over Python floats."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import CASES, a_model, batch, small
from tests.support.reference.attention import afm, autoint, destine, interhat
from tests.support.reference.math import Vector
from tests.support.reference.products import (
    afn,
    aoanet,
    dcn,
    dcnv2,
    deepfm,
    deepim,
    edcn,
    fibinet,
    finalmlp,
    fm,
    ipnn,
    lr,
    masknet,
    widedeep,
    xdeepfm,
)

pytestmark = pytest.mark.numeric

LOOPS: Mapping[str, Callable[..., Vector]] = {
    "lr": lr,
    "fm": fm,
    "ipnn": ipnn,
    "widedeep": widedeep,
    "dcn": dcn,
    "deepfm": deepfm,
    "xdeepfm": xdeepfm,
    "fibinet": fibinet,
    "afn": afn,
    "deepim": deepim,
    "aoanet": aoanet,
    "dcnv2": dcnv2,
    "edcn": edcn,
    "masknet": masknet,
    "finalmlp": finalmlp,
    "afm": afm,
    "interhat": interhat,
    "autoint": autoint,
    "destine": destine,
}

# Sizes that are small enough for loops, and that all differ.
SMALLER: dict[str, dict[str, Any]] = {
    "xdeepfm": {"cin": (7,)},
    "afn": {"neurons": 9, "afn": (7, 5)},
    "masknet": {"block_width": 5},
    "afm": {"attention": 5},
    "interhat": {"attention": 12, "heads": 2, "hidden": 7},
    "autoint": {"attention": 8, "layers": 3},
    "destine": {"attention": 6, "layers": 3},
}
# Additional values for options that test_every_model.py also tests.
MORE: list[tuple[str, dict[str, Any]]] = [
    ("ipnn", {"mlp_batch_norm": False}),
    ("dcn", {"mlp": ()}),
    ("edcn", {"temperature": 0.5}),
    ("masknet", {"mlp_batch_norm": True, "reduction": 0.5, "embedding_norm": True}),
    ("finalmlp", {"mlp": (8, 4), "mlp2_batch_norm": False, "heads": 4}),
    ("interhat", {"heads": 1, "order": 1}),
    ("destine", {"heads": 3}),
]
BASELINES = [(name, options) for name, options in CASES + MORE if name != "stec"]


def perturb(model: nn.Module) -> nn.Module:
    """Change the initial parameters. If biases were 0 and gains 1, a formula that omits them would pass."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("name", "options"), BASELINES, ids=[" ".join([name, *map(str, options.items())]) for name, options in BASELINES]
)
def test_logits_in_training_equal_loops_over_rows_fields_pairs_and_dimensions(
    name: str, options: dict[str, Any]
) -> None:
    sizes = SMALLER.get(name, {}) | options
    model: Any = perturb(a_model(name, **sizes))
    ids, values, _ = batch(5)
    values[0, 0] = 0.0  # Zero is the special case of AFN's logarithm.
    embedded = [table(ids, values).tolist() for table in model.embeddings]
    weights = {key: weight.tolist() for key, weight in model.state_dict().items()}
    expected = LOOPS[name](weights, small(name, **sizes), *embedded)
    torch.testing.assert_close(model(ids, values), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
