"""The baselines are as large as the published ones: BARS logged their parameters, the paper's Fig. 3 their FLOPs.

The configs are BARS's tuned hyper-parameters for Frappe_x1 and MovielensLatest_x1. Every difference in parameters is
one that a NOTE[DIFF] gives a reason for, and is less than 1% but for FinalMLP's.
"""

from typing import Any

import pytest
import torch

from model.flops import count_flops
from model.layers import Fields
from model.zoo import MODELS, build

# Rows of Frappe_x1's and MovielensLatest_x1's tables. How user and item, or MovieLens's fields, share theirs is a guess
# on which no count depends.
FRAPPE = Fields(
    [958, 4080, 8, 8, 3, 4, 3, 10, 81, 234],
    names=("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"),
)
MOVIELENS = Fields([30_000, 30_000, 30_239], names=("user_id", "item_id", "tag_id"))

NORMS = 3 * 400  # FuxiCTR's biases before the batch norms of the deep part

# Name, options, what BARS logged, and how many fewer parameters are here.
ON_FRAPPE: list[tuple[str, dict[str, Any], int, int]] = [
    ("ipnn", {"mlp_batch_norm": False}, 433_491, 0),
    ("widedeep", {}, 423_280, NORMS),
    ("dcn", {"cross_layers": 3}, 418_591, NORMS),
    ("deepfm", {}, 423_280, NORMS),
    ("xdeepfm", {"cin": (64,)}, 429_809, NORMS),
    ("fibinet", {"reduction": 2}, 743_480, NORMS - 10 * 10),  # one more W
    ("afn", {"neurons": 1000, "afn": (400,), "mlp_batch_norm": False}, 4_482_205, 0),
    ("deepim", {"order": 3}, 417_922, NORMS),
    ("aoanet", {"interaction_layers": 1, "subspaces": 2}, 418_331, NORMS),
    ("dcnv2", {"cross_layers": 4}, 458_391, NORMS),
    ("edcn", {"layers": 3, "regulation": True}, 86_351, 0),
    ("masknet", {"structure": "parallel", "blocks": 3, "block_width": 50, "reduction": 2}, 571_691, 0),
    ("afm", {"attention": 128}, 60_826, 0),
    ("autoint", {"attention": 128, "layers": 5, "heads": 4}, 622_180, NORMS),
    ("destine", {"attention": 128, "layers": 4}, 623_346, NORMS + 4 * (3 * 128 + 1)),  # the biases of q, k, v and u
]
ON_MOVIELENS: list[tuple[str, dict[str, Any], int, int]] = [
    ("ipnn", {"mlp_batch_norm": False}, 1_237_191, 0),
    ("widedeep", {}, 1_328_630, NORMS),
    ("dcn", {"cross_layers": 4}, 1_238_661, NORMS),
    ("deepfm", {}, 1_328_630, NORMS),
    ("xdeepfm", {"cin": (64, 64, 64), "mlp_batch_norm": False}, 1_351_767, 0),
    ("fibinet", {"reduction": 0.3}, 1_340_790, NORMS - 10 * 10),
    ("afn", {"neurons": 800, "afn": (200,), "mlp_batch_norm": False}, 3_742_791, 0),
    ("deepim", {"order": 5, "interaction_batch_norm": True}, 1_238_542, NORMS),
    ("aoanet", {"interaction_layers": 3, "subspaces": 2}, 1_239_113, NORMS),
    ("dcnv2", {"cross_layers": 5}, 1_243_071, NORMS),
    ("edcn", {"layers": 2, "regulation": False}, 904_701, 0),
    ("masknet", {"structure": "serial", "reduction": 4}, 2_624_541, 0),
    ("afm", {"attention": 16}, 992_832, 0),
    ("autoint", {"attention": 128, "layers": 2, "heads": 4, "wide": True}, 1_383_799, NORMS),
    ("destine", {"attention": 64, "layers": 3}, 1_274_821, NORMS + 3 * (3 * 64 + 1)),
]


def parameters(fields: Fields, name: str, **options: Any) -> int:
    config, _ = MODELS[name]
    return sum(p.numel() for p in build(fields, config(**options)).parameters())


@pytest.mark.parametrize(("name", "options", "logged", "fewer"), ON_FRAPPE, ids=[case[0] for case in ON_FRAPPE])
def test_on_frappe_it_has_the_parameters_that_bars_logged(
    name: str, options: dict[str, Any], logged: int, fewer: int
) -> None:
    found = parameters(FRAPPE, name, **options)
    assert found == logged - fewer
    assert found == pytest.approx(logged, rel=0.01)


@pytest.mark.parametrize(("name", "options", "logged", "fewer"), ON_MOVIELENS, ids=[case[0] for case in ON_MOVIELENS])
def test_on_movielens_it_has_the_parameters_that_bars_logged(
    name: str, options: dict[str, Any], logged: int, fewer: int
) -> None:
    found = parameters(MOVIELENS, name, **options)
    assert found == logged - fewer
    assert found == pytest.approx(logged, rel=0.01)


# BARS ran FinalMLP alone on FuxiCTR 2, whose tables have one more row for each field. Its fusion has a second bias.


def test_finalmlps_gates_share_a_table_of_all_fields_and_have_1_percent_more_for_it() -> None:
    found = parameters(FRAPPE, "finalmlp", mlp=(400,), mlp2=(100,), heads=5, context1=("user",), context2=("item",))
    more = 10 * sum(FRAPPE.sizes[2:])  # a table that user and item have for themselves in FuxiCTR
    biases, rows = 400 + 100 + 1, 10 * (FRAPPE.count + 2)
    assert found == 253_392 + more - biases - rows
    assert found / 253_392 == pytest.approx(1.011, abs=0.0005)


def test_finalmlps_gate_of_no_fields_is_a_vector_and_has_6_percent_fewer_for_it() -> None:
    found = parameters(MOVIELENS, "finalmlp", mlp=(400,), mlp2=(800,), gate=(800,), heads=10)
    gate = 10 + (10 * 800 + 800) + 800 * 30  # FuxiCTR's vector, and the MLP of it but for its last biases
    biases, rows = 400 + 800 + 1, 10 * MOVIELENS.count
    assert found == 1_040_902 - 2 * gate - biases - rows
    assert found / 1_040_902 == pytest.approx(0.936, abs=0.0005)


@pytest.mark.parametrize(
    ("name", "options", "flops"),
    [
        ("afm", {"attention": 16}, 40_666),  # Fig. 3: 41k
        ("autoint", {"attention": 256, "layers": 5, "heads": 2, "mlp": (400, 400, 400)}, 19_179_856),  # 19M
        ("interhat", {"attention": 64, "heads": 1, "hidden": 500, "order": 3, "mlp": ()}, 717_782),  # 720k
    ],
)
def test_a_row_of_avazu_costs_what_the_papers_figure_says(name: str, options: dict[str, Any], flops: int) -> None:
    config, _ = MODELS[name]
    model = build(Fields([3] * 22), config(**options))
    assert count_flops(model, torch.full((2, 22), 2), torch.zeros(2, 0)) == flops
