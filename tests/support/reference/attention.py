"""The logits of the baselines with attention over pairs or fields, in loops (see products.py)."""

import math
from itertools import combinations

from model.baselines.afm import AFMConfig
from model.baselines.autoint import AutoIntConfig
from model.baselines.destine import DESTINEConfig
from model.baselines.interhat import InterHAtConfig
from tests.support.reference.math import (
    Row,
    Vector,
    Weights,
    deep,
    dot,
    first_order,
    flat,
    layer_norm,
    linear,
    plus,
    product,
    relu,
    softmax,
    times,
    weighted,
)


def by_heads(weights: Weights, name: str, part: str, heads: int, e: Row) -> list[Row]:
    """Return the fields' queries, keys or values: one row per head, with the head's columns."""
    projected = [product(weights[f"{name}.{part}.weight"], v) for v in e]
    width = len(projected[0]) // heads
    return [[v[h * width : (h + 1) * width] for v in projected] for h in range(heads)]


def attention(weights: Weights, name: str, heads: int, is_scaled: bool, e: Row) -> Row:
    """Return each field's attention output over all fields, with the heads concatenated."""
    attended: Row = [[] for _ in e]
    parts = (by_heads(weights, name, part, heads, e) for part in ("query", "key", "value"))
    for q, k, v in zip(*parts, strict=True):
        divisor = math.sqrt(len(q[0])) if is_scaled else 1.0
        for i in range(len(e)):
            attended[i] += weighted(softmax([dot(q[i], k_j) / divisor for k_j in k]), v)
    return attended


def afm(weights: Weights, config: AFMConfig, x: list[Row], wide: list[Row]) -> Vector:
    logits = []
    for e, w in zip(x, wide, strict=True):
        pairs = [times(a, b) for a, b in combinations(e, 2)]
        scores = [product(weights["attention.2.weight"], relu(linear(weights, "attention.0", p)))[0] for p in pairs]
        pooled = product(weights["out.1.weight"], weighted(softmax(scores), pairs))[0]
        logits.append(weights["bias"][0] + first_order(w) + pooled)
    return logits


def interhat(weights: Weights, config: InterHAtConfig, x: list[Row]) -> Vector:
    rows = []
    for e in x:
        current = first = transformed(weights, config, e)
        found = []
        for number in range(config.order):
            u = aggregate(weights, f"orders.{number}", current)
            current = [plus(times(u, one), v) for one, v in zip(first, current, strict=True)]
            found.append(u)
        rows.append(aggregate(weights, "aggregation", found))
    return deep(weights, config, rows)


def transformed(weights: Weights, config: InterHAtConfig, e: Row) -> Row:
    out = []
    for v, attended in zip(e, attention(weights, "attention", config.heads, True, e), strict=True):
        answer = relu(product(weights["attention_out.weight"], attended))
        y = layer_norm(weights, "attention_norm", plus(answer, v))
        ffn = linear(weights, "ffn.2", relu(linear(weights, "ffn.0", y)))
        out.append(layer_norm(weights, "ffn_norm", plus(ffn, y)))
    return out


def aggregate(weights: Weights, name: str, row: Row) -> Vector:
    h = weights[f"{name}.score.2.weight"]
    scores = [product(h, relu(linear(weights, f"{name}.score.0", v)))[0] for v in row]
    return weighted(softmax(scores), row)


def autoint(weights: Weights, config: AutoIntConfig, x: list[Row], wide: list[Row] | None = None) -> Vector:
    logits = deep(weights, config, [flat(e) for e in x])
    for r, e in enumerate(x):
        for number in range(config.layers):
            e = interacting(weights, config, f"layers.{number}", e)
        logits[r] += linear(weights, "out", flat(e))[0] + (first_order(wide[r]) if wide else 0.0)
    return logits


def interacting(weights: Weights, config: AutoIntConfig, name: str, e: Row) -> Row:
    out = []
    for v, attended in zip(e, attention(weights, f"{name}.attention", config.heads, config.scaled, e), strict=True):
        residual = v if len(v) == config.attention else product(weights[f"{name}.residual.weight"], v)
        total = plus(attended, residual)
        out.append(relu(layer_norm(weights, f"{name}.norm", total) if config.layer_norm else total))
    return out


def destine(weights: Weights, config: DESTINEConfig, x: list[Row], wide: list[Row] | None = None) -> Vector:
    logits = deep(weights, config, [flat(e) for e in x])
    for r, e in enumerate(x):
        for number in range(config.layers):
            attended = disentangled(weights, config, f"layers.{number}", e)
            residual = [linear(weights, f"layers.{number}.residual", v) for v in e]
            e = [plus(a, b) for a, b in zip(attended, residual, strict=True)]
        logits[r] += linear(weights, "out", flat(e))[0] + (first_order(wide[r]) if wide else 0.0)
    return logits


def disentangled(weights: Weights, config: DESTINEConfig, name: str, e: Row) -> Row:
    """Return A V, which is each field's attention output over all fields."""
    attended: Row = [[] for _ in e]
    parts = (by_heads(weights, name, part, config.heads, e) for part in ("query", "key", "value"))
    for (q, k, v), u in zip(zip(*parts, strict=True), weights[f"{name}.unary.weight"], strict=True):
        divisor = math.sqrt(len(q[0])) if config.scaled else 1.0
        unary = softmax([dot(u, x_j) for x_j in e])
        for i, q_i in enumerate(centred(q)):
            pairwise = softmax([dot(q_i, k_j) / divisor for k_j in centred(k)])
            attended[i] += weighted(plus(pairwise, unary), v)
    return attended


def centred(row: Row) -> Row:
    means = [sum(column) / len(row) for column in zip(*row, strict=True)]
    return [[value - mean for value, mean in zip(v, means, strict=True)] for v in row]
