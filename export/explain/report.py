"""ctr-explain: why candidates get their probabilities, in a table and, with --out, in pictures."""

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
    """The largest pairs, and what adds up to the logit; numbers are contributions to it."""
    levels = range(len(explanation.contribution))
    title = f"{readable(str(explanation.id))}: click probability {explanation.ctr:.6f}"
    lines = Table(title=Text(title), title_justify="left")
    what = "field" if explanation.is_of_shares else "pair"
    lines.add_column(what, overflow="fold")
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
        lines.add_row(f"{len(others)} other {what}s", f"{sum(by_level):+.4f}", *(f"{share:+.4f}" for share in by_level))
    nobody = "every field missing" if explanation.is_of_shares else "the average training row"
    lines.add_row(f"bias: {nobody}", f"{explanation.bias:+.4f}")
    lines.add_row("logit", f"{explanation.logit:+.4f}", style="bold")
    return lines


def write(explanations: Sequence[Explanation], out: Path) -> None:
    """One picture of them all, when `out` ends in .png; else a folder with a picture each, and all numbers in
    explanations.json. Whole or not at all.

    Raises:
        ValueError: for too many in one picture, and for a folder of something else.
    """
    if out.suffix == PICTURE:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as aside:
            draw(explanations, Path(aside) / out.name)
            (Path(aside) / out.name).replace(out)
        return
    with new_folder(out, NUMBERS) as folder:
        numbers = msgspec.json.encode(explanations, enc_hook=lambda array: array.tolist())
        (folder / NUMBERS).write_bytes(numbers + b"\n")
        for number, explanation in enumerate(explanations, 1):
            draw([explanation], folder / f"{number}-{_file_name(explanation.id)}{PICTURE}")


def _file_name(identity: str | int) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(identity))[:60]
