"""The baselines have the published sizes: the parameter counts that BARS logged, and the FLOPs of the paper's Fig. 3.

The hyperparameters come from experiments/, and the table sizes from Frappe_x1 and MovielensLatest_x1. Comments marked
NOTE[DIFF] in the models explain every difference in parameters. Except for FinalMLP, the differences are below 1%.
"""

from typing import Any

import pytest
import torch

from model.experiment_config import read_experiment
from model.layers import Fields
from model.training.flops import count_flops
from model.zoo import MODELS, build
from tests.support.paths import EXPERIMENTS

# The rows of the tables of Frappe_x1 and MovielensLatest_x1. Only their totals are known. How they are divided between
# user and item, and among MovieLens's fields, is a guess that no count depends on.
FRAPPE = Fields(
    [958, 4080, 8, 8, 3, 4, 3, 10, 81, 234],
    names=("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"),
)
MOVIELENS = Fields([30_000, 30_000, 30_239], names=("user_id", "item_id", "tag_id"))

NORMS = 3 * 400  # FuxiCTR also has biases before the batch norms of the deep part.

# Name, number of parameters that BARS logged, and how many fewer parameters the model has here.
ON_FRAPPE = [
    ("lr", 5_390, 0),
    ("fm", 59_280, 0),
    ("ipnn", 433_491, 0),
    ("widedeep", 423_280, NORMS),
    ("dcn", 418_591, NORMS),
    ("deepfm", 423_280, NORMS),
    ("xdeepfm", 429_809, NORMS),
    ("fibinet", 743_480, NORMS - 10 * 10),  # This project has one more W.
    ("afn", 4_482_205, 0),
    ("deepim", 417_922, NORMS),
    ("aoanet", 418_331, NORMS),
    ("dcnv2", 458_391, NORMS),
    ("edcn", 86_351, 0),
    ("masknet", 571_691, 0),
    ("afm", 60_826, 0),
    ("autoint", 622_180, NORMS),
    ("destine", 623_346, NORMS + 4 * (3 * 128 + 1)),  # FuxiCTR also has biases for q, k, v and u.
]
ON_MOVIELENS = [
    ("lr", 90_240, 0),
    ("fm", 992_630, 0),
    ("ipnn", 1_237_191, 0),
    ("widedeep", 1_328_630, NORMS),
    ("dcn", 1_238_661, NORMS),
    ("deepfm", 1_328_630, NORMS),
    ("xdeepfm", 1_351_767, 0),
    ("fibinet", 1_340_790, NORMS - 10 * 10),
    ("afn", 3_742_791, 0),
    ("deepim", 1_238_542, NORMS),
    ("aoanet", 1_239_113, NORMS),
    ("dcnv2", 1_243_071, NORMS),
    ("edcn", 904_701, 0),
    ("masknet", 2_624_541, 0),
    ("afm", 992_832, 0),
    ("autoint", 1_383_799, NORMS),
    ("destine", 1_274_821, NORMS + 3 * (3 * 64 + 1)),
]


def on_frappe(name: str) -> int:
    return parameters(FRAPPE, "frappe", name)


def on_movielens(name: str) -> int:
    return parameters(MOVIELENS, "movielens_tag", name)


def parameters(fields: Fields, log: str, name: str) -> int:
    model = build(fields, read_experiment(EXPERIMENTS / log / f"{name}.toml").model)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "logged", "fewer"), ON_FRAPPE)
def test_a_model_has_the_parameters_that_bars_logged_on_frappe(name: str, logged: int, fewer: int) -> None:
    found = on_frappe(name)
    assert found == logged - fewer
    assert found == pytest.approx(logged, rel=0.01)


@pytest.mark.parametrize(("name", "logged", "fewer"), ON_MOVIELENS)
def test_a_model_has_the_parameters_that_bars_logged_on_movielens(name: str, logged: int, fewer: int) -> None:
    found = on_movielens(name)
    assert found == logged - fewer
    assert found == pytest.approx(logged, rel=0.01)


# FinalMLP is the only model that BARS ran on FuxiCTR 2, whose tables have one more row per field.
# The fusion of FuxiCTR also has a second bias.


def test_finalmlp_with_its_shared_gate_table_has_1_percent_more_parameters() -> None:
    found = on_frappe("finalmlp")
    more = 10 * sum(FRAPPE.sizes[2:])  # In FuxiCTR, user and item have their own tables.
    biases, rows = 400 + 100 + 1, 10 * (FRAPPE.count + 2)
    assert found == 253_392 + more - biases - rows
    assert found / 253_392 == pytest.approx(1.011, abs=0.0005)


def test_finalmlp_with_gates_without_fields_has_6_percent_fewer_parameters() -> None:
    found = on_movielens("finalmlp")
    gate = 10 + (10 * 800 + 800) + 800 * 30  # FuxiCTR's vector and its MLP, without the last biases.
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
def test_a_row_of_avazu_has_the_flops_of_the_figure_in_the_paper(
    name: str, options: dict[str, Any], flops: int
) -> None:
    config, _ = MODELS[name]
    model = build(Fields([3] * 22), config(**options))
    assert count_flops(model, torch.full((2, 22), 2), torch.zeros(2, 0)) == flops
