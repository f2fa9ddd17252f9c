"""How much the attention of trained runs selects, and how much each level moves the logit."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import RESULTS
from export.graphs.block import blocks_of
from export.graphs.level import has_linear_head
from loadtest.report import Table, write_report
from model.data.data_folder import add_data_argument
from model.experiments.run_folder import open_run
from model.experiments.trial import open_log
from model.stec.attention import attention_weights
from model.stec.stec import STEC
from model.training.batches import Split

TITLE = "Attention and levels of trained models"
TEXT = """Each row is a head of a block, measured on the test rows of the run's log. The entropy is that of a field's
attention weights, divided by the entropy of uniform attention, averaged over fields and rows: 1 means that attention
selects nothing, 0 that it selects a single field. The largest weight is averaged in the same way, and its uniform value
stands beside it. The deviation of a level is the standard deviation of what it adds to the logit; the last level is the
standalone interaction, which has no attention."""
ROWS = 4096


def attention_of(model: STEC, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """Measure a model on a split.

    Returns:
        The normalized entropy (blocks, H), the largest weight (blocks, H) and the deviation of each level (levels).
    """
    entropies, largest, logits = [], [], []
    for ids, values in parts(split):
        x_BFD = model.embed(ids, values)
        by_block, levels = [], []
        for block in blocks_of(model):
            q_BFD, k_BFD = block.project(x_BFD)
            by_block.append(attention_weights(q_BFD, k_BFD, block.heads, block.score_divisor, model.allowed_FF))
            x_BFD, left_BFD, right_BFD = block(x_BFD, plain=False, allowed_FF=model.allowed_FF)
            levels.append((left_BFD, right_BFD))
        weight_LBFFH = torch.stack(by_block)
        entropies.append(normalized_entropy(weight_LBFFH).flatten(1, 2))
        largest.append(weight_LBFFH.amax(3).flatten(1, 2))
        logits.append(model.level_logits([*levels, model.last(x_BFD)]))
    return torch.cat(entropies, 1).mean(1), torch.cat(largest, 1).mean(1), torch.cat(logits, 1).std(1)


def parts(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the ids and values of a split in parts."""
    for start in range(0, len(split), ROWS):
        rows = split.part(start, start + ROWS)
        yield rows.ids.long(), rows.values


def normalized_entropy(weight_LBFFH: Tensor) -> Tensor:
    """Return the entropy of each field's weights, divided by that of uniform ones. Shape: (L, B, F, H).

    A weight of 0 is either negligible or belongs to a field that attention = "request" excludes.
    """
    attended_LBFH = (weight_LBFFH > 0).sum(3).clamp(min=2)
    entropy_LBFH: Tensor = -torch.special.xlogy(weight_LBFFH, weight_LBFFH).sum(3)
    return entropy_LBFH / attended_LBFH.log()


def rows_of(name: str, model: STEC, split: Split) -> list[list[str]]:
    """Return the table rows of a run."""
    entropy_LH, largest_LH, deviation_L = attention_of(model, split)
    attended_F = torch.full((model.fields,), model.fields) if model.allowed_FF is None else model.allowed_FF.sum(1)
    uniform = float(attended_F.reciprocal().mean())
    assert len(deviation_L) == len(model.blocks) + 1, "every block has a level"
    rows = [
        [
            name,
            f"{block + 1}",
            f"{head + 1}",
            f"{entropy:.3f}",
            f"{largest_LH[block, head]:.3f} ({uniform:.3f})",
            f"{deviation_L[block]:.2f}",
        ]
        for block, heads in enumerate(entropy_LH)
        for head, entropy in enumerate(heads)
    ]
    return [*rows, [name, "last", "", "", "", f"{deviation_L[-1]:.2f}"]]


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.attention", description=__doc__)
    add_data_argument(parser)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder of a STEC with a linear head")
    options = parser.parse_args()
    rows = []
    for run in options.runs:
        model, experiment, _, _ = open_run(run)
        if not has_linear_head(model) or len(model.norms) <= len(model.blocks):
            print(f"{run}: not a STEC with a linear head and a level for each block", file=sys.stderr)
            return 2
        with torch.inference_mode():
            rows += rows_of(experiment.name, model, open_log(experiment.data, options.data).splits["test"])
    header = ["run", "block", "head", "normalized entropy", "largest weight (uniform)", "deviation of the level"]
    table = Table("", header, rows)
    command = "python -m benchmarks.attention --data DIR RUN..."
    write_report(RESULTS / "attention.md", TITLE, TEXT, [table], ["torch", "numpy"], command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
