"""Speedup of a training step that avoids the f x f x d tensor.

All variants of one model run in turn in one process, with the same weights and batch. A step is the forward pass,
the loss and the backward pass of the whole model: embedding, attention and head.
"""

import statistics
import time
from contextlib import AbstractContextManager
from unittest.mock import patch

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from benchmarks import RESULTS
from loadtest.report import Table, write_report
from model.layers import Fields
from model.stec import fused
from model.stec.stec import STEC, Block, STECConfig

ROWS = 4096
SIZE = STECConfig(embedding=16, blocks=2, heads=2, embedding_std=0.1)
TOKENS = 1000  # per field
FIELDS = (10, 22, 39)
ROUNDS = 7

Step = tuple[float, Tensor, dict[str, Tensor]]


def step(model: STEC, ids: Tensor, values: Tensor, labels: Tensor) -> Step:
    """Run one step and return its time in ms, the logits and the gradients by parameter."""
    model.zero_grad()
    start = time.perf_counter()
    logits = model(ids, values)
    functional.binary_cross_entropy_with_logits(logits, labels).backward()
    step_ms = (time.perf_counter() - start) * 1e3
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.numel()}
    return step_ms, logits.detach(), gradients


def flipped(plain: STEC, fast: STEC, ids: Tensor, values: Tensor) -> int:
    """Count the hidden units whose input has a different sign in the two variants, which only rounding can cause."""
    signs: dict[bool, list[Tensor]] = {}
    with torch.no_grad():
        for model in (plain, fast):
            found: list[Tensor] = []
            x_BFD = model.embedding(ids, values)
            for block in model.blocks:
                assert isinstance(block, Block)
                hook = block.ffn[0].register_forward_hook(lambda _, __, out, found=found: found.append(out > 0))
                x_BFD, _, _ = block(x_BFD, model.plain)
                hook.remove()
            signs[model.plain] = found
    return sum(int((a != b).sum()) for a, b in zip(signs[True], signs[False], strict=True))


def compare(fields: int) -> list[str]:
    """Return the table row for a model with this number of fields."""
    torch.manual_seed(0)
    plain = STEC(Fields([TOKENS] * fields), SIZE, plain=True)
    fast = STEC(Fields([TOKENS] * fields), SIZE)
    fast.load_state_dict(plain.state_dict())
    ids, values = torch.randint(TOKENS, (ROWS, fields)), torch.empty(ROWS, 0)
    labels = (torch.rand(ROWS) < 0.3).float()
    times: list[tuple[float, float, float]] = []
    for round_ in track(range(ROUNDS + 1), f"{fields} fields"):
        with torch_only():
            a, b = step(plain, ids, values, labels), step(fast, ids, values, labels)
        c = step(fast, ids, values, labels)
        if round_:  # the first round is the warm-up
            times.append((a[0], b[0], c[0]))
    logit = max((a[1] - other[1]).abs().max().item() for other in (b, c))
    gradient = max(
        ((a[2][n] - other[2][n]).abs().max() / a[2][n].abs().max().clamp_min(1e-12)).item()
        for n in a[2]
        for other in (b, c)
    )
    plain_ms, torch_ms, kernel_ms = (statistics.median(column) for column in zip(*times, strict=True))
    return [
        str(fields),
        *(f"{ms:,.0f}" for ms in (plain_ms, torch_ms, kernel_ms)),
        f"{ROWS / kernel_ms * 1e3:,.0f}",
        ratio([x / z for x, _, z in times]),
        ratio([y / z for _, y, z in times]),
        f"{logit:.0e}",
        f"{gradient:.0e}",
        str(flipped(plain, fast, ids, values)),
    ]


def torch_only() -> AbstractContextManager[object]:
    """Return a context in which training does not use the kernel."""
    return patch.object(fused, "can_train", lambda *tensors: False)


def ratio(ratios: list[float]) -> str:
    return f"**{statistics.median(ratios):.1f}** ({min(ratios):.1f} to {max(ratios):.1f})"


def main() -> None:
    rows = [compare(fields) for fields in FIELDS]
    text = (
        f"STEC, batch {ROWS}, D = {SIZE.embedding}, N = {SIZE.blocks}, {SIZE.heads} heads, float32 with float64 batch "
        f"statistics, {torch.get_num_threads()} threads. Plain: with the f x f x d interaction in memory. Factorized: "
        "without it, in torch (model/stec/factorized.py). Kernel: without it, in C++ (model/stec/fused.py), as in "
        f"training. Times are medians of {ROUNDS} steps of each variant, run in turn. Ratios are medians over "
        "rounds (minimum to maximum). The differences from plain are the largest difference over the batch's logits, "
        "and the largest difference over all parameters' gradients, relative to the parameter's largest gradient. "
        "Among millions of hidden units, one may be so close to zero that rounding decides its ReLU (last column). "
        "This alone changes the gradients of its row by 0.1%."
    )
    header = [
        "fields",
        "plain ms/step",
        "factorized ms/step",
        "kernel ms/step",
        "kernel rows/s",
        "plain / kernel",
        "factorized / kernel",
        "logit difference",
        "gradient difference",
        "ReLUs flipped",
    ]
    title = "A training step: plain, factorized, and in C++"
    table = Table("", header, rows)
    write_report(RESULTS / "training.md", title, text, [table], ["torch"], "python -m benchmarks.training")


if __name__ == "__main__":
    main()
