"""Showing explanations as a table, and writing them to a folder of pictures and numbers."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table
from rich.text import Text

from export.explain.explanation import Explanation, readable
from export.explain.picture import draw
from model.atomic_folder import new_folder

NUMBERS = "explanations.json"
PICTURE = ".png"


def table(explanation: Explanation, top: int) -> Table:
    """Return a table of the largest contributions and the sum of all others, which add up to the logit.

    Args:
        explanation: The explanation.
        top: The number of pairs to show. The others are summed.
    """
    levels = range(len(explanation.contribution))
    title = f"{readable(str(explanation.id))}: click probability {explanation.ctr:.6f}"
    lines = Table(title=Text(title), title_justify="left")
    unit = "field" if explanation.is_of_shares else "pair"
    lines.add_column(unit, overflow="fold")
    for name in ("adds to the logit", *(f"level {level}" for level in levels)):
        lines.add_column(name, justify="right")
    pairs, labels = explanation.pairs(), explanation.labels()
    for pair in pairs[:top]:
        both = labels[pair.first]
        if pair.second != pair.first:
            both += f" \N{MULTIPLICATION SIGN} {labels[pair.second]}"
        lines.add_row(Text(both), f"{pair.contribution:+.4f}", *(f"{share:+.4f}" for share in pair.by_level))
    lines.add_section()
    if others := pairs[top:]:
        by_level = [sum(float(pair.by_level[level]) for pair in others) for level in levels]
        lines.add_row(f"{len(others)} other {unit}s", f"{sum(by_level):+.4f}", *(f"{share:+.4f}" for share in by_level))
    reference = "every field missing" if explanation.is_of_shares else "the average training row"
    lines.add_row(f"bias: {reference}", f"{explanation.bias:+.4f}")
    lines.add_row("logit", f"{explanation.logit:+.4f}", style="bold")
    if explanation.calibrated_logit != explanation.logit:
        lines.add_row("logit after calibration", f"{explanation.calibrated_logit:+.4f}", style="bold")
    return lines


def write(explanations: Sequence[Explanation], out: Path) -> None:
    """Write one picture of all explanations, or a folder with a picture of each one and explanations.json.

    The output is written atomically.

    Args:
        explanations: The explanations to write.
        out: A .png file or a folder.

    Raises:
        ValueError: If there are too many explanations for one picture, or the folder contains something else.
    """
    if out.suffix == PICTURE:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            draw(explanations, Path(temporary) / out.name)
            (Path(temporary) / out.name).replace(out)
        return
    with new_folder(out, NUMBERS) as folder:
        numbers = msgspec.json.encode(explanations, enc_hook=lambda array: array.tolist())
        (folder / NUMBERS).write_bytes(numbers + b"\n")
        for number, explanation in enumerate(explanations, 1):
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", str(explanation.id))[:60]
            draw([explanation], folder / f"{number}-{name}{PICTURE}")
