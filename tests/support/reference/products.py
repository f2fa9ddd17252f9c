"""The logits of the baselines that multiply fields, in loops over rows, fields, pairs and dimensions.

Each function takes the model's weights, its config, and the output of each embedding table for a batch.
"""

import math
from collections.abc import Sequence
from itertools import combinations

from model.baselines.afn import AFNConfig
from model.baselines.aoanet import AOANetConfig
from model.baselines.dcn import DCNConfig
from model.baselines.dcnv2 import DCNv2Config
from model.baselines.deepfm import DeepFMConfig
from model.baselines.deepim import DeepIMConfig
from model.baselines.edcn import EDCNConfig
from model.baselines.fibinet import FiBiNETConfig
from model.baselines.finalmlp import FinalMLPConfig
from model.baselines.fm import FMConfig
from model.baselines.ipnn import IPNNConfig
from model.baselines.lr import LRConfig
from model.baselines.masknet import MaskNetConfig
from model.baselines.widedeep import WideDeepConfig
from model.baselines.xdeepfm import XDeepFMConfig
from tests.support.models import NAMES
from tests.support.reference.math import (
    Row,
    Vector,
    Weights,
    batch_norm,
    channel_norm,
    deep,
    deep_hidden,
    dot,
    first_order,
    flat,
    hidden,
    layer_norm,
    linear,
    mlp,
    plus,
    product,
    relu,
    second_order,
    softmax,
    times,
)


def lr(weights: Weights, config: LRConfig, wide: list[Row]) -> Vector:
    return [weights["bias"][0] + first_order(w) for w in wide]


def fm(weights: Weights, config: FMConfig, x: list[Row], wide: list[Row]) -> Vector:
    return [weights["bias"][0] + first_order(w) + second_order(e) for e, w in zip(x, wide, strict=True)]


def ipnn(weights: Weights, config: IPNNConfig, x: list[Row]) -> Vector:
    return deep(weights, config, [flat(e) + [dot(a, b) for a, b in combinations(e, 2)] for e in x])


def widedeep(weights: Weights, config: WideDeepConfig, x: list[Row], wide: list[Row]) -> Vector:
    return plus([first_order(w) for w in wide], deep(weights, config, [flat(e) for e in x]))


def deepfm(weights: Weights, config: DeepFMConfig, x: list[Row], wide: list[Row]) -> Vector:
    machine = [first_order(w) + second_order(e) for e, w in zip(x, wide, strict=True)]
    return plus(machine, deep(weights, config, [flat(e) for e in x]))


def dcn(weights: Weights, config: DCNConfig, x: list[Row]) -> Vector:
    crossed = []
    for e in x:
        c = first = flat(e)
        for number in range(config.cross_layers):
            c = cross(weights, number, first, c)
        crossed.append(c)
    both = zip(crossed, deep_hidden(weights, config, [flat(e) for e in x]), strict=True)
    return [linear(weights, "out", c + h)[0] for c, h in both]


def cross(weights: Weights, number: int, first: Vector, c: Vector) -> Vector:
    """Return c + (w . c) c_0 + b."""
    size = dot(weights[f"crosses.{number}.weight"][0], c)
    return [c_m + size * first_m + b for c_m, first_m, b in zip(c, first, weights[f"shifts.{number}"], strict=True)]


def dcnv2(weights: Weights, config: DCNv2Config, x: list[Row]) -> Vector:
    crossed = []
    for e in x:
        c = first = flat(e)
        for number in range(config.cross_layers):
            c = plus(c, times(first, linear(weights, f"crosses.{number}", c)))
        crossed.append(c)
    both = zip(crossed, deep_hidden(weights, config, [flat(e) for e in x]), strict=True)
    return [linear(weights, "out", c + h)[0] for c, h in both]


def xdeepfm(weights: Weights, config: XDeepFMConfig, x: list[Row], wide: list[Row]) -> Vector:
    sums = [first_order(w) + compressed(weights, config, e) for e, w in zip(x, wide, strict=True)]
    return plus(sums, deep(weights, config, [flat(e) for e in x]))


def compressed(weights: Weights, config: XDeepFMConfig, e: Row) -> float:
    """Return the linear output of the compressed interaction network (CIN)."""
    before, pooled = e, []
    for layer, maps in enumerate(config.cin):
        new: Row = [[weights[f"cin.{layer}.bias"][h]] * config.embedding for h in range(maps)]
        for h, weight in enumerate(weights[f"cin.{layer}.weight"]):
            pairs = ((a, b) for a in e for b in before)
            for w_ij, (a, b) in zip(weight, pairs, strict=True):
                new[h] = [old + w_ij * a_d * b_d for old, a_d, b_d in zip(new[h], a, b, strict=True)]
        before = new
        pooled += [sum(feature_map) for feature_map in new]
    return linear(weights, "cin_out", pooled)[0]


def fibinet(weights: Weights, config: FiBiNETConfig, x: list[Row], wide: list[Row]) -> Vector:
    rows = []
    for e in x:
        squeezed = [sum(vector) / len(vector) for vector in e]
        excited = relu(product(weights["senet.2.weight"], relu(product(weights["senet.0.weight"], squeezed))))
        v = [[a * value for value in vector] for a, vector in zip(excited, e, strict=True)]
        rows.append(bilinear(config, weights["bilinear.0"], e) + bilinear(config, weights["bilinear.1"], v))
    return plus([first_order(w) for w in wide], deep(weights, config, rows))


def bilinear(config: FiBiNETConfig, matrices: list[Row], e: Row) -> Vector:
    """Return (e_i W) * e_j for each pair."""
    out: Vector = []
    for number, (a, b) in enumerate(combinations(e, 2)):
        matrix = matrices[0 if config.bilinear == "field_all" else number]
        out += times([dot(a, list(column)) for column in zip(*matrix, strict=True)], b)
    return out


def afn(weights: Weights, config: AFNConfig, x: list[Row], second: list[Row]) -> Vector:
    logarithms = [[[math.log(max(abs(value), 1e-5)) for value in vector] for vector in e] for e in x]
    z = []
    for e in channel_norm(weights, "log_norm", logarithms):
        dimensions = [list(column) for column in zip(*e, strict=True)]
        z.append([[math.exp(dot(order, column)) for column in dimensions] for order in weights["orders.weight"]])
    crossed = [flat([list(column) for column in zip(*e, strict=True)]) for e in channel_norm(weights, "cross_norm", z)]
    cross_out = mlp(weights, "cross_mlp", crossed, len(config.afn), config.mlp_batch_norm)
    deep_out = deep(weights, config, [flat(e) for e in second])
    return [linear(weights, "out", [c, d])[0] for (c,), d in zip(cross_out, deep_out, strict=True)]


def deepim(weights: Weights, config: DeepIMConfig, x: list[Row]) -> Vector:
    """Return the logits. The products of all sets of k fields are summed directly, without sums of powers."""
    rows = [[total for k in range(config.order) for total in products_of(k + 1, e)] for e in x]
    if config.interaction_batch_norm:
        rows = batch_norm(weights, "out.0", rows)
    layer = "out.1" if config.interaction_batch_norm else "out.0"
    interactions = [linear(weights, layer, row)[0] for row in rows]
    return plus(interactions, deep(weights, config, [flat(e) for e in x]))


def products_of(k: int, e: Row) -> Vector:
    return [sum(math.prod(v[d] for v in chosen) for chosen in combinations(e, k)) for d in range(len(e[0]))]


def aoanet(weights: Weights, config: AOANetConfig, x: list[Row]) -> Vector:
    last = []
    for e in x:
        rows = e
        for layer in range(config.interaction_layers):
            rows = [subspace(weights, f"layers.{layer}", o, e, rows) for o in range(config.subspaces)]
        last.append(flat(rows))
    both = zip(deep_hidden(weights, config, [flat(e) for e in x]), last, strict=True)
    return [linear(weights, "out", h + b)[0] for h, b in both]


def subspace(weights: Weights, name: str, o: int, e: Row, rows: Row) -> Vector:
    """Return (W_o * S_o) h_o, where S_o is the weighted sum of outer products."""
    alpha, width = weights[f"{name}.alpha"], range(len(e[0]))
    s = [[0.0 for _ in width] for _ in width]
    for i, first in enumerate(e):
        for j, last in enumerate(rows):
            for c in width:
                s[c] = [s[c][d] + alpha[i][j][o] * first[c] * last[d] for d in width]
    return [dot(times(weights[f"{name}.weight"][o][c], s[c]), weights[f"{name}.read"][o]) for c in width]


def edcn(weights: Weights, config: EDCNConfig, x: list[Row]) -> Vector:
    bridge, first = [flat(e) for e in x], None
    for number in range(config.layers):
        c, y = (regulate(weights, config, f"regulations.{number}", stream, bridge) for stream in (0, 1))
        first = first or c
        c = [cross(weights, number, *both) for both in zip(first, c, strict=True)]
        y = [relu(linear(weights, f"deeps.{number}.0", row)) for row in y]
        bridge = [times(*both) for both in zip(c, y, strict=True)]
    return [linear(weights, "out", flat(list(parts)))[0] for parts in zip(c, y, bridge, strict=True)]


def regulate(weights: Weights, config: EDCNConfig, name: str, stream: int, rows: list[Vector]) -> list[Vector]:
    if config.regulation:
        shares = softmax([gate / config.temperature for gate in weights[f"{name}.gates"][stream]])
        factors = [share for share in shares for _ in range(config.embedding)]
        rows = [times(factors, row) for row in rows]
    return batch_norm(weights, f"{name}.norms.{stream}", rows)


def masknet(weights: Weights, config: MaskNetConfig, x: list[Row]) -> Vector:
    outs = []
    for e in x:
        h = flat([layer_norm(weights, f"norms.{i}", v) for i, v in enumerate(e)] if config.embedding_norm else e)
        if config.structure == "parallel":
            h = flat([mask_block(weights, number, flat(e), h) for number in range(config.blocks)])
        else:
            for number in range(len(config.mlp)):
                h = mask_block(weights, number, flat(e), h)
        outs.append(h)
    if config.structure == "parallel":
        return deep(weights, config, outs, "out")
    return [linear(weights, "out.0", h)[0] for h in outs]


def mask_block(weights: Weights, number: int, e: Vector, h: Vector) -> Vector:
    name = f"blocks.{number}"
    mask = linear(weights, f"{name}.mask.2", relu(linear(weights, f"{name}.mask.0", e)))
    return relu(layer_norm(weights, f"{name}.hidden.1", product(weights[f"{name}.hidden.0.weight"], times(mask, h))))


def finalmlp(weights: Weights, config: FinalMLPConfig, x: list[Row], context: Sequence[Row] = ()) -> Vector:
    first = selected(weights, config, 0, config.context1, x, context)
    second = selected(weights, config, 1, config.context2, x, context)
    first = hidden(weights, "mlp", first, len(config.mlp), config.mlp_batch_norm)
    second = hidden(weights, "mlp2", second, len(config.mlp2), config.mlp2_batch_norm)
    return [
        linear(weights, "out", a)[0] + dot(weights["out2.weight"][0], b) + fusion(weights["fusion"], a, b)
        for a, b in zip(first, second, strict=True)
    ]


def selected(
    weights: Weights, config: FinalMLPConfig, stream: int, names: tuple[str, ...], x: list[Row], context: Sequence[Row]
) -> list[Vector]:
    """Return e * 2 sigmoid(gate)."""
    if names:
        rows = [flat([c[NAMES.index(name)] for name in names]) for c in context]
        gates = mlp(weights, f"gates.{stream}.net", rows, len(config.gate), False)
    else:
        gates = [weights[f"gates.{stream}.vector"][0]] * len(x)
    both = zip(x, gates, strict=True)
    return [[2 * v / (1 + math.exp(-g)) for v, g in zip(flat(e), gate, strict=True)] for e, gate in both]


def fusion(matrices: list[Row], a: Vector, b: Vector) -> float:
    """Return the sum of the heads' o_1h^T W_h o_2h."""
    total, rows, columns = 0.0, len(matrices[0]), len(matrices[0][0])
    for h, matrix in enumerate(matrices):
        for i in range(rows):
            for j in range(columns):
                total += a[h * rows + i] * matrix[i][j] * b[h * columns + j]
    return total
