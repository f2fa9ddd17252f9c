"""ctr-explain: explain the probabilities of candidates in a table and, with --out, in pictures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from model.cli.arguments import add_pseudonym_key_argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="ctr-explain", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run folder (from ctr-train) or a bundle (from ctr-export)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("request", type=Path, nargs="?", help="a file with the body of a POST /v1/score request")
    source.add_argument("--golden", type=int, metavar="N", help="explain N generated requests instead (1 to 300)")
    parser.add_argument("--candidate", default="all", metavar="ID", help="which candidate to explain; default: all")
    parser.add_argument(
        "--top", type=natural_number, default=10, metavar="N", help="number of pairs shown; default: 10"
    )
    parser.add_argument("--out", type=Path, help="a folder for all numbers and one picture per candidate, or FILE.png")
    add_pseudonym_key_argument(parser)
    options = parser.parse_args(arguments)

    limit_threads()

    from export.run_or_bundle import is_bundle

    try:
        is_bundle(options.folder)  # a wrong folder is reported before the slow imports
    except ValueError as error:
        print(f"ctr-explain: {error}", file=sys.stderr)
        return 2

    from rich.console import Console

    from contract.pseudonyms import check_pseudonym_key, open_pseudonymizer
    from export.explain.case import drawn_cases, request_cases
    from export.explain.explanation import open_explainer, readable
    from export.explain.report import table, write

    try:
        explainer = open_explainer(options.folder, open_pseudonymizer(options.pseudonym_key))
        check_pseudonym_key(explainer.schema, explainer.pseudonyms)
        if options.golden is not None:
            cases = drawn_cases(explainer.schema, explainer.vocabularies, options.golden)
        else:
            cases = request_cases(options.request, options.candidate)
        explanations = [explainer.explain(case) for case in cases]
        if ignored := dict.fromkeys(readable(name) for case in cases for name in explainer.ignored(case)):
            print(
                f"ctr-explain: ignored these features, which are not fields of the model: {', '.join(ignored)}",
                file=sys.stderr,
            )
        if options.out is not None:
            write(explanations, options.out)
    except (OSError, ValueError) as error:
        print(f"ctr-explain: {error}", file=sys.stderr)
        return 2
    console = Console()
    for explanation in explanations:
        console.print(table(explanation, options.top))
    if options.out is not None:
        print(f"wrote {options.out}")
    return 0


def natural_number(text: str) -> int:
    """Parse a whole number that is at least 0. For argparse.

    Raises:
        argparse.ArgumentTypeError: If the text is anything else.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
