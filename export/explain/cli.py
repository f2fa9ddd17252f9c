"""ctr-explain: why candidates get their probabilities, in a table and, with --out, in pictures."""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from export.explain.case import ALL, drawn_cases, request_cases
from export.explain.explanation import Explainer, Explanation, open_explainer, readable
from export.explain.picture import draw
from model.atomic_folder import new_folder

TOP = 10
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


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        explainer = open_explainer(arguments.folder)
        explanations = _explain(explainer, arguments)
        if arguments.out is not None:
            write(explanations, arguments.out)
    except (OSError, ValueError) as error:
        print(f"ctr-explain: {error}", file=sys.stderr)
        return 2
    console = Console()
    for explanation in explanations:
        console.print(table(explanation, arguments.top))
    if arguments.out is not None:
        print(f"wrote {arguments.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ctr-explain", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run (of ctr-train) or a bundle (of ctr-export)")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("request", type=Path, nargs="?", help="a file with the body of POST /v1/score")
    asked.add_argument("--golden", type=int, metavar="N", help="N requests drawn field by field, no row of the log")
    parser.add_argument("--candidate", default=ALL, metavar="ID", help=f"of the request's; default: {ALL}")
    parser.add_argument("--top", type=_count, default=TOP, metavar="N", help=f"how many pairs; default: {TOP}")
    parser.add_argument("--out", type=Path, help="FOLDER for a picture each and all numbers, or one FILE.png")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def _explain(explainer: Explainer, arguments: argparse.Namespace) -> list[Explanation]:
    if arguments.golden is not None:
        cases = drawn_cases(explainer.schema, explainer.vocabularies, arguments.golden)
    else:
        cases = request_cases(arguments.request, arguments.candidate)
    explanations = [explainer.explain(case) for case in cases]
    ignored = dict.fromkeys(readable(name) for case in cases for name in explainer.ignored(case))
    if ignored:
        print(f"ctr-explain: not read, for the model has no such field: {', '.join(ignored)}", file=sys.stderr)
    return explanations


def _file_name(identity: str | int) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(identity))[:60]


if __name__ == "__main__":
    sys.exit(main())
