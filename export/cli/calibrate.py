"""ctr-calibrate: fit a run's probabilities to later traffic, and measure the result.

Without JOINED, the calibration is fitted to valid of the run's prepared log and measured on its test. With JOINED, it
is fitted to the day before the last one, and measured on the last day. The command writes calibration.json,
calibration-report.md, calibration-report.json and calibration.png into the run. ctr-export puts the calibration into
the bundle.

The exit code is 0 if the calibration was written, 2 after an error, and 3 if there are too few clicks.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.cpu_quota import limit_threads
from contract.system_errors import describe
from model.cli.arguments import INTERRUPTED, add_pseudonym_key_argument, duration_s
from model.data.data_folder import add_data_argument
from model.experiments.run_check import check_run

if TYPE_CHECKING:
    from export.calibrate.report import CalibrationReport
    from export.calibrate.source import Source

TOO_FEW_CLICKS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        check_run(options.run)
    except ValueError as error:
        print(f"ctr-calibrate: {error}", file=sys.stderr)
        return 2
    limit_threads()

    from export.calibrate.calibrate import calibrate
    from export.calibrate.fit import TooFewClicksError

    try:
        method = None if options.method == "auto" else options.method
        report = calibrate(options.run, read_source(options), options.by, method)
    except TooFewClicksError as error:
        print(f"ctr-calibrate: {error} Nothing was written.", file=sys.stderr)
        return TOO_FEW_CLICKS
    except (OSError, ValueError) as error:
        print(f"ctr-calibrate: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-calibrate: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    print_result(options.run, report)
    return 0


def read_source(options: argparse.Namespace) -> "Source":
    """Return the rows to calibrate with.

    Raises:
        ValueError: If they cannot be read.
    """
    if not options.joined:
        from export.calibrate.source import read_prepared_log

        return read_prepared_log(options.run, options.data, options.by)
    from contract.pseudonyms import open_pseudonymizer
    from export.calibrate.joined import Lengths, read_joined_log

    lengths = Lengths(options.valid, options.test)
    pseudonyms = open_pseudonymizer(options.pseudonym_key)
    return read_joined_log(options.run, options.joined, lengths, options.by, options.negative_rate, pseudonyms)


def print_result(run: Path, report: "CalibrationReport") -> None:
    """Print what was fitted and measured, and any warnings."""
    from contract.calibration import CALIBRATION
    from export.calibrate.report import MARKDOWN, ratio_text

    for name, split in (("fitted to", report.valid), ("measured on", report.test)):
        print(f"{name} {split.source}: {split.rows:,} rows, {split.clicks:,} clicks")
    segments = f", {report.segments:,} values of {report.segment_field}" if report.segment_field else ""
    print(f"{report.method}, {report.knots} knots{segments}")
    before, after = report.before, report.after
    print(f"predicted / observed: {ratio_text(before.overall)} before, {ratio_text(after.overall)} after")
    print(f"normalized entropy: {before.normalized_entropy:.6f} before, {after.normalized_entropy:.6f} after")
    print(f"wrote {run / CALIBRATION} and {run / MARKDOWN}")
    for warning in report.warnings:
        print(f"ctr-calibrate: warning: {warning}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(prog="ctr-calibrate", description=__doc__)
    made.add_argument("run", type=Path, help="the run folder that ctr-train wrote")
    made.add_argument(
        "joined", nargs="*", metavar="JOINED", help="a folder of ctr-join, or files, folders and globs with such rows"
    )
    add_data_argument(made)
    made.add_argument(
        "--by",
        metavar="FIELD",
        help="a context field, such as slot: each value gets its own shift",
    )
    made.add_argument(
        "--method",
        choices=("auto", "platt", "isotonic"),
        default="auto",
        help="the default is Platt scaling below 10,000 clicks, and isotonic regression otherwise",
    )
    made.add_argument("--valid", type=duration_s, default="1d", help="with JOINED: the length of valid; default: 1d")
    made.add_argument("--test", type=duration_s, default="1d", help="with JOINED: the length of test; default: 1d")
    made.add_argument(
        "--negative-rate",
        type=share,
        default=1.0,
        metavar="SHARE",
        help="with JOINED: the share of the non-clicks that its rows contain; default: 1",
    )
    add_pseudonym_key_argument(made)
    return made


def share(text: str) -> float:
    """Parse a share above 0 and at most 1. For argparse.

    Raises:
        argparse.ArgumentTypeError: If the number is out of range.
    """
    if not 0 < (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
