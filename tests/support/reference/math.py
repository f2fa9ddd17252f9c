"""Functions that several baselines' loops share. They compute each number individually, in Python's float64."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from model.layers import BaselineConfig

EPS = 1e-5  # default of torch's layer norm and batch norm

Vector = list[float]
Row = list[Vector]  # one vector per field
Weights = dict[str, Any]  # a state_dict as nested lists


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def plus(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]


def times(a: Vector, b: Vector) -> Vector:
    return [x * y for x, y in zip(a, b, strict=True)]


def flat(row: Row) -> Vector:
    return [value for vector in row for value in vector]


def first_order(wide: Row) -> float:
    """Return the sum of the weights w_i, from a table of width 1."""
    return sum(flat(wide))


def second_order(e: Row) -> float:
    return sum(dot(a, b) for a, b in combinations(e, 2))


def product(matrix: Sequence[Vector], v: Vector) -> Vector:
    return [dot(row, v) for row in matrix]


def linear(weights: Weights, name: str, v: Vector) -> Vector:
    return plus(product(weights[f"{name}.weight"], v), weights[f"{name}.bias"])


def relu(v: Vector) -> Vector:
    return [max(0.0, value) for value in v]


def softmax(v: Vector) -> Vector:
    exponentials = [math.exp(value) for value in v]
    return [value / sum(exponentials) for value in exponentials]


def standard(v: Vector) -> Vector:
    mean = sum(v) / len(v)
    variance = sum((x - mean) ** 2 for x in v) / len(v)
    return [(x - mean) / math.sqrt(variance + EPS) for x in v]


def layer_norm(weights: Weights, name: str, v: Vector) -> Vector:
    return plus(times(weights[f"{name}.weight"], standard(v)), weights[f"{name}.bias"])


def batch_norm(weights: Weights, name: str, rows: list[Vector]) -> list[Vector]:
    """Normalize each number over the batch, as in training."""
    return [flat(row) for row in channel_norm(weights, name, [[[value] for value in row] for row in rows])]


def channel_norm(weights: Weights, name: str, rows: list[Row]) -> list[Row]:
    """Normalize the numbers of each vector together, over the batch and the dimensions, as in training."""
    gain = weights[f"{name}.weight"]
    shift = weights.get(f"{name}.bias", [0.0] * len(gain))
    width = len(rows[0][0])
    channels = [standard(flat([row[c] for row in rows])) for c in range(len(gain))]
    return [
        [[gain[c] * n + shift[c] for n in normal[r * width :][:width]] for c, normal in enumerate(channels)]
        for r in range(len(rows))
    ]


def hidden(weights: Weights, name: str, rows: list[Vector], layers: int, has_norm: bool) -> list[Vector]:
    """Return the output of the hidden layers.

    The order is FuxiCTR's: linear, batch norm, ReLU, dropout. Each of these has its own number in the weights. A linear
    layer before a batch norm has no bias, because the batch norm would subtract it.
    """
    step = 4 if has_norm else 3
    for number in range(0, layers * step, step):
        if has_norm:
            rows = [product(weights[f"{name}.{number}.weight"], row) for row in rows]
            rows = batch_norm(weights, f"{name}.{number + 1}", rows)
        else:
            rows = [linear(weights, f"{name}.{number}", row) for row in rows]
        rows = [relu(row) for row in rows]
    return rows


def mlp(weights: Weights, name: str, rows: list[Vector], layers: int, has_norm: bool) -> list[Vector]:
    """Return the output of hidden(), followed by a linear layer."""
    rows = hidden(weights, name, rows, layers, has_norm)
    return [linear(weights, f"{name}.{layers * (4 if has_norm else 3)}", row) for row in rows]


def deep(weights: Weights, config: BaselineConfig, rows: list[Vector], name: str = "mlp") -> Vector:
    """Return the output of the deep part, one number per row."""
    return flat(mlp(weights, name, rows, len(config.mlp), config.mlp_batch_norm))


def deep_hidden(weights: Weights, config: BaselineConfig, rows: list[Vector]) -> list[Vector]:
    """Return the output of the deep part's last hidden layer."""
    return hidden(weights, "mlp", rows, len(config.mlp), config.mlp_batch_norm)


def weighted(shares: Vector, row: Row) -> Vector:
    """Return the sum of the row's vectors, weighted by the shares."""
    return [sum(share * vector[d] for share, vector in zip(shares, row, strict=True)) for d in range(len(row[0]))]
