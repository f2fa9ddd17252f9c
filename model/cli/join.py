"""ctr-join: join the request log with impressions, clicks and conversions into a log to train on."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from contract.system_errors import describe
from model.cli.arguments import INTERRUPTED, duration_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    limit_threads()
    options = parse_arguments(arguments)

    import polars as pl

    from model.loop.join import join
    from model.loop.lines import milliseconds
    from model.loop.output import Settings
    from model.loop.predicted_observed import write_metrics
    from model.loop.report import summary, warnings

    try:
        rename = dict(renaming(text) for text in options.rename)
        settings = Settings(window_s=options.window, lateness_s=options.lateness, rename=rename)
        until_ms = None if options.until is None else milliseconds(options.until)
        joined = join(options.inputs, options.out, settings, until_ms, options.mark_joined)
        if options.metrics is not None:
            write_metrics(options.metrics, joined.predicted_observed.newest(), time.time())
    except (OSError, ValueError, pl.exceptions.ComputeError) as error:  # polars reports a full disk as the last one
        print(f"ctr-join: {describe(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-join: interrupted; complete hours were kept", file=sys.stderr)
        return INTERRUPTED
    for line in summary(joined):
        print(line)
    for line in warnings(joined):
        print(f"warning: {line}", file=sys.stderr)
    print(f"wrote {options.out}")
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of the command."""
    parser = argparse.ArgumentParser(prog="ctr-join", description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="folders of the request log and of ctr-collect, in any order, or files in them",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for the joined log")
    parser.add_argument(
        "--window",
        type=duration_s,
        default=30 * 60,
        metavar="DURATION",
        help="how long after an impression its click may happen, such as 30m (the default), 90s, 2h or 7d",
    )
    parser.add_argument(
        "--lateness",
        type=duration_s,
        default=24 * 3600,
        metavar="DURATION",
        help="how long after the end of the window events may arrive (default: 24h). An hour is written after that",
    )
    parser.add_argument(
        "--until",
        metavar="TIME",
        help="the time before which all events are in the inputs, such as 2026-11-30T21:00:00Z (default: the latest "
        "time in the inputs, or a minute before the first unfinished file was opened)",
    )
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="rename a column of the join, such as position, or a feature: context.NAME or candidate.NAME. May be "
        "repeated",
    )
    parser.add_argument(
        "--mark-joined",
        action="store_true",
        help="rename the event files that no later join needs to *.ndjson.shipped, so that you can delete them",
    )
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE.prom",
        help="also write predicted and observed clicks by model version to this file, for the textfile collector of "
        "Prometheus's node_exporter",
    )
    options = parser.parse_args(arguments)
    if options.metrics is not None and (options.metrics.suffix != ".prom" or not options.metrics.parent.is_dir()):
        parser.error(f"--metrics {options.metrics}: expected a file in an existing folder, with a name ending in .prom")
    return options


def renaming(text: str) -> tuple[str, str]:
    """Parse the argument of --rename.

    Raises:
        ValueError: If it does not have the form OLD=NEW.
    """
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise ValueError(f"--rename {text}: expected OLD=NEW, such as position=shown_at_position")
    return old, new


if __name__ == "__main__":
    sys.exit(main())
