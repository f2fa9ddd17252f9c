"""ctr-gate: decide whether a new model may replace the old one, by comparing both on a later day of the joined log.

NEW and OLD are bundles or runs. Neither may have been trained on the rows that are compared. The exit code is 0 if the
new model passes, 1 if it fails, 3 if there are not enough clicks to decide, and 2 after an error.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from contract.system_errors import describe
from model.cli.arguments import INTERRUPTED
from model.data.data_folder import add_data_argument

EXIT_CODES = {"pass": 0, "fail": 1, "not enough clicks": 3}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    limit_threads()
    options = parser().parse_args(arguments)

    from export.run_or_bundle import is_bundle

    try:
        for folder in (options.new, options.old):
            is_bundle(folder)  # a wrong folder is reported before the slow imports

        from export.gate.gate import gate
        from export.gate.report import PAGE, REPORT, check_out, write_report
        from export.gate.verdict import Limits
        from model.loop.lines import milliseconds

        since, until = (None if text is None else milliseconds(text) for text in (options.since, options.until))
        check_out(options.out, (options.new, options.old))
        limits = Limits(options.margin, options.tolerance, options.segment_tolerance)
        report = gate(options.new, options.old, options.joined, limits, options.by, since, until, options.data)
        write_report(report, options.out)
    except (OSError, ValueError) as error:
        print(f"ctr-gate: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-gate: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except BaseException:  # also a panic of polars
        # Python would exit with code 1, which means that the new model fails.
        traceback.print_exc()
        return 2
    for check in report.checks:
        if not check.name.startswith("segment ") or check.verdict == "fail":
            print(f"{check.name}: {check.verdict}: {check.reason}")
    print(f"wrote {options.out / REPORT} and {options.out / PAGE}")
    print(f"verdict: {report.verdict}")
    return EXIT_CODES[report.verdict]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(prog="ctr-gate", description=__doc__)
    made.add_argument("new", type=Path, metavar="NEW", help="the new model: a bundle or a run")
    made.add_argument("old", type=Path, metavar="OLD", help="the model that is served now: a bundle or a run")
    made.add_argument("joined", type=Path, metavar="JOINED", help="the joined log: the folder that ctr-join writes")
    made.add_argument("--out", type=Path, required=True, metavar="REPORT", help="the folder for the report")
    made.add_argument("--since", metavar="TIME", help="the beginning of the period; default: 24 hours before --until")
    made.add_argument("--until", metavar="TIME", help="the end of the period (exclusive); default: the end of the log")
    made.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="FIELD",
        help="also check predicted / observed for each value of this column of the log; may be repeated",
    )
    made.add_argument(
        "--margin",
        type=positive,
        default=0.001,
        metavar="SHARE",
        help="how much the normalized entropy may be worse, relative to the old model's; default: 0.001",
    )
    made.add_argument(
        "--tolerance",
        type=positive,
        default=0.02,
        metavar="SHARE",
        help="how far predicted / observed may be from 1; default: 0.02",
    )
    made.add_argument(
        "--segment-tolerance",
        type=positive,
        default=0.05,
        metavar="SHARE",
        help="the same for segments, and for the interval over all rows; default: 0.05",
    )
    add_data_argument(made)
    return made


def positive(text: str) -> float:
    """Parse a share above 0 and below 1. For argparse.

    Raises:
        argparse.ArgumentTypeError: If the text is not such a number.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number between 0 and 1, such as 0.001")
    return number


if __name__ == "__main__":
    sys.exit(main())
