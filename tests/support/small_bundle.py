"""A small real bundle whose logit is a sum of weights and context-candidate products.

Its golden answers are computed with numpy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from contract.bundle import GOLDEN, MODEL, SCHEMA, VOCABULARY, open_bundle, write_manifest
from contract.calibration import Calibration
from contract.golden import GoldenCandidate, GoldenRequest, write_golden
from contract.schema import FeatureSchema, Field, write_schema
from contract.vocabulary import FIRST, MISSING, UNKNOWN, build_vocabulary

SHIFT = -0.5
WIDTH = 4  # embedding size
TOKENS = {
    "user": [f"u{i}" for i in range(40)],
    "weekday": ["monday", "saturday", "sunday"],
    "item": [str(4000 + i) for i in range(90)],
    "cost": ["free", "paid", "münzen"],
}
AGE = Field("age", "context", "numeric", 30.0, 10.0, seen=(0.0, 120.0))
CONTEXT = (Field("user", "context"), AGE, Field("weekday", "context"))
CANDIDATE = (Field("item", "candidate"), Field("cost", "candidate"), Field("price", "candidate", "numeric", 2.0, 0.5))
FIELDS = FeatureSchema((CONTEXT[0], CANDIDATE[0], *CONTEXT[1:], *CANDIDATE[1:]))

Weights = dict[str, NDArray[np.float32]]


def write_small_bundle(
    folder: Path, seed: int = 0, golden_shift: float = 0.0, name: str = "small", warnings: Sequence[str] = ()
) -> Path:
    """Write the bundle and return its folder. With a nonzero `golden_shift`, the golden answers are wrong."""
    random = np.random.default_rng(seed)
    (folder / VOCABULARY).mkdir(parents=True)
    write_schema(FIELDS, folder / SCHEMA)
    for field, tokens in TOKENS.items():
        build_vocabulary(tokens).save(folder / VOCABULARY, field)
    weights = _weights(random)
    onnx.save(graph(weights), str(folder / MODEL))
    golden = [_golden(random, weights, SHIFT + golden_shift) for _ in range(30)]
    write_golden(golden, folder / GOLDEN)
    write_manifest(folder, name, 1000, {"auc": 0.75}, Calibration(scale=1.0, shift=SHIFT), warnings=warnings)
    return folder


def with_users_rotated(folder: Path, number: int) -> Path:
    """Give a small bundle another vocabulary, in which the users have other ids. Return the bundle's folder.

    The bundle is valid, but the golden answers are wrong.
    """
    users = TOKENS["user"]
    build_vocabulary([*users[number:], *users[:number]]).save(folder / VOCABULARY, "user")
    manifest = open_bundle(folder, verify=False).manifest
    write_manifest(folder, manifest.name, 1000, manifest.metrics, manifest.calibration)
    return folder


def graph(weights: Weights, candidate_width: int = 2) -> onnx.ModelProto:
    """Return the graph of u . i + weekday . cost + 0.3 age + 0.7 price, with u from the candidate's own request."""
    constants = {**weights, "age": np.array([[0.3]], np.float32), "price": np.array([[0.7]], np.float32)}
    columns = {"column_0": np.array(0, np.int64), "column_1": np.array(1, np.int64)}
    nodes = [
        *_embed("user", "context_ids", "column_0", "user_R"),
        *_embed("weekday", "context_ids", "column_1", "weekday_R"),
        *_embed("item", "candidate_ids", "column_0", "item_N"),
        *_embed("cost", "candidate_ids", "column_1", "cost_N"),
        helper.make_node("Gather", ["user_R", "request_index"], ["user_N"]),
        helper.make_node("Gather", ["weekday_R", "request_index"], ["weekday_N"]),
        helper.make_node("Mul", ["user_N", "item_N"], ["ui"]),
        helper.make_node("Mul", ["weekday_N", "cost_N"], ["wc"]),
        helper.make_node("Add", ["ui", "wc"], ["pairs"]),
        helper.make_node("ReduceSum", ["pairs", "axis"], ["pair_logit"], keepdims=0),
        helper.make_node("MatMul", ["context_values", "age"], ["age_R1"]),
        helper.make_node("Gather", ["age_R1", "request_index"], ["age_N1"]),
        helper.make_node("MatMul", ["candidate_values", "price"], ["price_N1"]),
        helper.make_node("Add", ["age_N1", "price_N1"], ["values_N1"]),
        helper.make_node("Squeeze", ["values_N1", "axis"], ["value_logit"]),
        helper.make_node("Add", ["pair_logit", "value_logit"], ["logit"]),
    ]
    initializers: dict[str, NDArray[Any]] = {**constants, **columns, "axis": np.array([1], np.int64)}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [
                helper.make_tensor_value_info("context_ids", TensorProto.INT64, ["R", 2]),
                helper.make_tensor_value_info("candidate_ids", TensorProto.INT64, ["N", candidate_width]),
                helper.make_tensor_value_info("request_index", TensorProto.INT64, ["N"]),
                helper.make_tensor_value_info("context_values", TensorProto.FLOAT, ["R", 1]),
                helper.make_tensor_value_info("candidate_values", TensorProto.FLOAT, ["N", 1]),
            ],
            [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["N"])],
            [numpy_helper.from_array(array, name) for name, array in initializers.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


def _embed(field: str, ids: str, column: str, out: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", [ids, column], [f"{field}_column"], axis=1),
        helper.make_node("Gather", [f"{field}_table", f"{field}_column"], [out]),
    ]


def _weights(random: np.random.Generator) -> Weights:
    return {
        f"{field}_table": random.normal(size=(len(tokens) + FIRST, WIDTH)).astype(np.float32)
        for field, tokens in TOKENS.items()
    }


def _golden(random: np.random.Generator, weights: Weights, shift: float) -> GoldenRequest:
    user, user_id = _draw(random, "user")
    weekday, weekday_id = _draw(random, "weekday")
    age, scaled_age = _draw_number(random, 30.0, 10.0)
    candidates, ctr = [], []
    for number in range(int(random.integers(1, 8))):
        item, item_id = _draw(random, "item")
        cost, cost_id = _draw(random, "cost")
        price, scaled_price = _draw_number(random, 2.0, 0.5)
        features = {"item": item, "cost": cost, "price": price}
        candidates.append(GoldenCandidate(f"c{number}", features))
        logit = float(weights["user_table"][user_id] @ weights["item_table"][item_id])
        logit += float(weights["weekday_table"][weekday_id] @ weights["cost_table"][cost_id])
        logit += 0.3 * scaled_age + 0.7 * scaled_price
        ctr.append(float(1 / (1 + np.exp(-(logit + shift)))))
    return GoldenRequest({"user": user, "weekday": weekday, "age": age}, candidates, ctr)


def _draw(random: np.random.Generator, field: str) -> tuple[Any, int]:
    luck = random.random()
    if luck < 0.1:
        return None, MISSING
    if luck < 0.2:
        return "never seen", UNKNOWN
    index = int(random.integers(len(TOKENS[field])))
    return TOKENS[field][index], index + FIRST


def _draw_number(random: np.random.Generator, mean: float, std: float) -> tuple[float | None, float]:
    if random.random() < 0.1:
        return None, 0.0
    value = float(round(random.normal(mean, std), 3))
    return value, (value - mean) / std
