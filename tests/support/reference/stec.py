"""STEC as loops over rows, pairs, heads and dimensions, in Python's float64. It is slow, but easy to verify."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from model.stec.stec import STEC, STECConfig

EPS = 1e-5  # default of torch's batch norm
MEAN_SQUARE_EPS = 1e-12

Vector = list[float]
Row = list[Vector]  # one vector per field
Pairs = dict[tuple[int, int, int], float]  # (i, j, c) -> the interaction


def slow_logits(model: STEC, size: STECConfig, embedded: list[Row]) -> Vector:
    """Return the logits of a batch in training mode, without dropout, from the embedding's output."""
    weights: dict[str, Any] = {name: t.tolist() for name, t in model.state_dict().items()}
    allowed = None if model.allowed_FF is None else model.allowed_FF.tolist()
    categorical = len(embedded[0]) - len(weights["embedding.alpha"])
    rows = [_levels(weights, size, x, allowed) for x in _embedding_norm(size, embedded, categorical)]
    seen = _levels_in_head(size)
    normalized = []
    for position, level in enumerate(seen):
        batch = [[row[level][key] for key in _keys(size, len(embedded[0]))] for row in rows]
        gain, shift = weights[f"norms.{position}.weight"], weights.get(f"norms.{position}.bias")
        normalized.append(_batch_norm(batch, gain, shift, size.level_eps, size.level_eps_relative))
    heads = [_fuse(size, [level[row] for level in normalized]) for row in range(len(rows))]
    return _head(weights, size, heads)


def _embedding_norm(size: STECConfig, rows: list[Row], categorical: int) -> list[Row]:
    if size.embedding_norm == "none":
        return rows
    normalized: list[Row] = [[] for _ in rows]
    for f in range(len(rows[0])):
        columns = [[row[f][c] for row in rows] for c in range(size.embedding)]
        square = sum(x * x for column in columns for x in column) / (len(rows) * len(columns))
        variances = [_variance(column) for column in columns]
        if f >= categorical:
            variances = [sum(variances) / len(variances)] * len(variances)
        for r, row in enumerate(rows):
            if size.embedding_norm == "rms":
                normalized[r].append([x / math.sqrt(square + MEAN_SQUARE_EPS) for x in row[f]])
                continue
            centered = [x - sum(column) / len(column) for x, column in zip(row[f], columns, strict=True)]
            scales = [1 / math.sqrt(v + EPS * square + MEAN_SQUARE_EPS) for v in variances]
            normalized[r].append([x * scale for x, scale in zip(centered, scales, strict=True)])
    return normalized


def _levels_in_head(size: STECConfig) -> list[int]:
    if size.fusion != "last":
        return list(range(size.blocks + 1))
    return [size.blocks] if size.last == "layer" else [size.blocks - 1]


def _keys(size: STECConfig, fields: int) -> list[tuple[int, int, int]]:
    is_seen: dict[str, Callable[[int, int], bool]] = {
        "full": lambda i, j: True,
        "upper": lambda i, j: i < j,
        "upper_diag": lambda i, j: i <= j,
    }
    pairs = [(i, j) for i in range(fields) for j in range(fields) if is_seen[size.pairs](i, j)]
    return [(i, j, c) for i, j in pairs for c in range(size.embedding)]


def _levels(weights: dict[str, Any], size: STECConfig, x: Row, allowed: list[list[bool]] | None) -> dict[int, Pairs]:
    """Return every interaction that a head can use, by level. With last = "block", there is one block fewer."""
    levels = {}
    blocks = size.blocks - 1 if size.last == "block" else size.blocks
    for number in range(blocks):
        name = f"blocks.{number}"
        levels[number] = _interaction(*_factors(weights, size, f"{name}.project", x))
        if f"{name}.bilinear.weight" in weights:
            levels[number] = _interaction(*_factors(weights, size, f"{name}.bilinear", x))
        x = _block(weights, size, name, x, allowed)
    levels[blocks] = _interaction(*_factors(weights, size, "last", x))
    return levels


def _factors(weights: dict[str, Any], size: STECConfig, name: str, x: Row) -> tuple[Row, Row]:
    if f"{name}.query.weight" in weights:
        query, key = weights[f"{name}.query.weight"], weights[f"{name}.key.weight"]
        return [_product(query, v) for v in x], [_product(key, v) for v in x]
    per_head = size.embedding // size.heads
    right = []
    for v in x:
        parts = [_product(weights[f"{name}.weight"][h], v[h * per_head :][:per_head]) for h in range(size.heads)]
        right.append([value for part in parts for value in part])
    return x, right


def _interaction(left: Row, right: Row) -> Pairs:
    fields, width = range(len(left)), range(len(left[0]))
    return {(i, j, c): left[i][c] * right[j][c] for i in fields for j in fields for c in width}


def _block(weights: dict[str, Any], size: STECConfig, name: str, x: Row, allowed: list[list[bool]] | None) -> Row:
    q, k = _factors(weights, size, f"{name}.project", x)
    v = [_product(weights[f"{name}.value.weight"], one) for one in x]
    attended = [_attend(size, i, q, k, v, allowed) for i in range(len(x))]
    out = [_product(weights[f"{name}.out.weight"], one) for one in attended]
    x = [
        _layer_norm(weights, f"{name}.attention_norm", _sum(a, b), size.layer_norm_eps)
        for a, b in zip(x, out, strict=True)
    ]
    if size.ffn == 0:
        return x
    hidden = [[max(0.0, h) for h in _linear(weights, f"{name}.ffn.0", one)] for one in x]
    out = [_linear(weights, f"{name}.ffn.2", one) for one in hidden]
    return [
        _layer_norm(weights, f"{name}.ffn_norm", _sum(a, b), size.layer_norm_eps) for a, b in zip(x, out, strict=True)
    ]


def _attend(size: STECConfig, i: int, q: Row, k: Row, v: Row, allowed: list[list[bool]] | None) -> Vector:
    per_head = size.embedding // size.heads
    divisor = per_head if size.scale == "mean" else math.sqrt(per_head)
    others = [j for j in range(len(q)) if allowed is None or allowed[i][j]]
    attended = []
    for h in range(size.heads):
        columns = range(h * per_head, (h + 1) * per_head)
        scores = [math.exp(sum(q[i][c] * k[j][c] for c in columns) / divisor) for j in others]
        shares = [score / sum(scores) for score in scores]
        attended += [sum(share * v[j][c] for share, j in zip(shares, others, strict=True)) for c in columns]
    return attended


def _fuse(size: STECConfig, levels: list[Vector]) -> Vector:
    if size.fusion == "add":
        return [sum(values) for values in zip(*levels, strict=True)]
    return [value for level in levels for value in level]


def _head(weights: dict[str, Any], size: STECConfig, rows: list[Vector]) -> Vector:
    layer = 0
    for _ in size.mlp:
        rows = [_linear(weights, f"head.{layer}", row) for row in rows]
        if size.mlp_batch_norm:
            layer += 1
            rows = _batch_norm(rows, weights[f"head.{layer}.weight"], weights[f"head.{layer}.bias"], EPS, 0.0)
        rows = [[max(0.0, value) for value in row] for row in rows]
        layer += 3  # skips this layer, the activation and the dropout
    return [_linear(weights, f"head.{layer}", row)[0] for row in rows]


def _batch_norm(rows: list[Vector], gain: Vector, shift: Vector | None, eps: float, relative: float) -> list[Vector]:
    columns = [list(column) for column in zip(*rows, strict=True)]
    eps += relative * sum(_variance(column) for column in columns) / len(columns)
    columns = [_standard(column, eps) for column in columns]
    shift = shift or [0.0] * len(gain)
    return [[gain[c] * column[r] + shift[c] for c, column in enumerate(columns)] for r in range(len(rows))]


def _layer_norm(weights: dict[str, Any], name: str, v: Vector, eps: float) -> Vector:
    gain, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return [g * n + s for g, n, s in zip(gain, _standard(v, eps), shift, strict=True)]


def _standard(v: Vector, eps: float) -> Vector:
    mean = sum(v) / len(v)
    return [(x - mean) / math.sqrt(_variance(v) + eps) for x in v]


def _variance(v: Vector) -> float:
    mean = sum(v) / len(v)
    return sum((x - mean) ** 2 for x in v) / len(v)


def _linear(weights: dict[str, Any], name: str, v: Vector) -> Vector:
    product = _product(weights[f"{name}.weight"], v)
    return _sum(product, weights[f"{name}.bias"]) if f"{name}.bias" in weights else product


def _product(matrix: Sequence[Vector], v: Vector) -> Vector:
    return [sum(w * x for w, x in zip(row, v, strict=True)) for row in matrix]


def _sum(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]
