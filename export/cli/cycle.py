"""ctr-cycle: run a day of the online loop, from the logs to a new version in the store.

The steps are ctr-join, ctr-prepare, ctr-predict (how the served version predicts the day), ctr-train, ctr-calibrate,
ctr-export, ctr-gate and ctr-store add. The output of each one is in WORK/days/DAY/<step>.log. If ctr-cycle is stopped,
run the same command again: it continues with the first step that is not complete.

Exit codes: 0 the version was added, 1 the gate failed, 2 an error, 3 not enough clicks for the gate, 4 try again later,
because the day is not final or another ctr-cycle is running.
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from contract.cpu_quota import limit_threads
from contract.system_errors import describe
from model.cli.arguments import INTERRUPTED, duration_s, positive_int

if TYPE_CHECKING:
    from export.cycle.steps import Settings

ADDED, FAILED, ERROR, FEW_CLICKS, LATER = 0, 1, 2, 3, 4
DAY_S = 86_400
FIRST_YEAR, LAST_YEAR = 1971, 9998  # so that neighboring days exist, and times are not negative
GATE_OPTIONS = ("margin", "tolerance", "segment-tolerance")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(arguments)
    limit_threads()

    from export.cycle.cycle import Busy, run_cycle
    from export.cycle.days import NotFinal
    from export.cycle.report import headline
    from export.cycle.run_step import StepFailed

    # systemd stops a service with SIGTERM. The running step is then stopped too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = to_settings(options)
        print(f"{settings.day}: {settings.work}/days/{settings.day}", flush=True)
        result = run_cycle(settings, lambda line: print(line, flush=True))
    except (NotFinal, Busy) as error:
        print(f"ctr-cycle: {error}", file=sys.stderr)
        return LATER
    except (OSError, ValueError, StepFailed) as error:
        print(f"ctr-cycle: {describe(error)}", file=sys.stderr)
        if isinstance(error, StepFailed):
            print("Fix the cause, and run the same command again. Complete steps are not repeated.", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("ctr-cycle: interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except BaseException:  # also a panic of polars
        # Python would exit with code 1, which means that the gate failed.
        traceback.print_exc()
        return ERROR
    report = result.report
    if not result.is_new:
        print(
            f"{report.day} is already finished. To run it again, delete {settings.work}/days/{report.day}/cycle.json. "
            "Steps whose inputs and arguments have not changed are not repeated."
        )
    for path in result.removed:
        print(f"removed {path}, which is older than --keep {settings.keep} days")
    print(f"{headline(report)}: see {settings.work}/days/{report.day}/cycle.md")
    return {"added": ADDED, "fail": FAILED, "not enough clicks": FEW_CLICKS}[report.outcome]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="ctr-cycle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path, help="an experiment's TOML file that reads the joined log")
    logs = {"requests": "the request log", "events": "ctr-collect"}
    for name, what in logs.items():
        parser.add_argument(
            f"--{name}", type=Path, nargs="+", required=True, metavar="DIR", help=f"the folders of {what}"
        )
    parser.add_argument("--store", type=Path, required=True, help="the store that the new version is added to")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="WORK", help="the working folder, the same one on every day"
    )
    parser.add_argument(
        "--day", type=day, metavar="DATE", help="the day in UTC, such as 2026-11-30 (default: the newest final one)"
    )
    parser.add_argument(
        "--window",
        type=whole_days,
        metavar="DAYS",
        help="how much of the joined log to use, up to the end of the day, such as 14d (default: the length of the "
        "experiment's split, or 7d if the split does not limit train)",
    )
    parser.add_argument(
        "--click-window",
        type=duration_s,
        default=30 * 60,
        metavar="DURATION",
        help="how long after an impression its click may happen (default: 30m): ctr-join --window",
    )
    parser.add_argument(
        "--lateness",
        type=duration_s,
        default=DAY_S,
        metavar="DURATION",
        help="how long after that events may arrive (default: 24h)",
    )
    parser.add_argument("--until", metavar="TIME", help="the time before which all events have arrived: see ctr-join")
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="see ctr-join")
    parser.add_argument(
        "--by", metavar="FIELD", help="the field whose values ctr-calibrate corrects, and ctr-gate checks, one by one"
    )
    for name in GATE_OPTIONS:
        parser.add_argument(f"--{name}", metavar="SHARE", help="a limit of the gate: see ctr-gate")
    parser.add_argument("--activate", action="store_true", help="also make the new version current")
    parser.add_argument(
        "--keep",
        type=positive_int,
        default=7,
        metavar="N",
        help="how many days keep their prepared log, run and bundle (default: 7). The run that the next day continues "
        "is always kept",
    )
    parser.add_argument("--device", default="cpu", help="where to train: see ctr-train")
    return parser.parse_args(arguments)


def to_settings(options: argparse.Namespace) -> "Settings":
    """Return the settings with absolute paths, and with the default of --day."""
    from export.cycle.days import newest_final_day
    from export.cycle.steps import Settings
    from model.loop.lines import milliseconds

    until = options.until
    now = datetime.now(UTC) if until is None else datetime.fromtimestamp(milliseconds(until) / 1000, UTC)
    if not FIRST_YEAR < now.year <= LAST_YEAR:
        raise ValueError(f"--until {until}: expected a time after {FIRST_YEAR} and before {LAST_YEAR + 1}.")
    return Settings(
        experiment=options.experiment,
        requests=[path.absolute() for path in options.requests],
        events=[path.absolute() for path in options.events],
        store=options.store.absolute(),
        work=options.out.absolute(),
        day=options.day or newest_final_day(now, options.click_window, options.lateness),
        window_days=options.window,
        click_window_s=options.click_window,
        lateness_s=options.lateness,
        until=until,
        rename=options.rename,
        by=options.by,
        gate=gate_arguments(options),
        activate=options.activate,
        keep=options.keep,
        device=options.device,
    )


def gate_arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments that are passed on to ctr-gate."""
    limits = {name: getattr(options, name.replace("-", "_")) for name in GATE_OPTIONS}
    return [word for name, value in limits.items() if value is not None for word in (f"--{name}", value)]


def day(text: str) -> date:
    """Parse a date. For argparse.

    Raises:
        argparse.ArgumentTypeError: If the text is not a date.
    """
    try:
        found = date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date such as 2026-11-30") from error
    if not FIRST_YEAR <= found.year <= LAST_YEAR:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date from {FIRST_YEAR} to {LAST_YEAR}")
    return found


def whole_days(text: str) -> int:
    """Parse a duration of one or more whole days, and return the number of days. For argparse.

    Raises:
        argparse.ArgumentTypeError: If the text is not such a duration.
    """
    seconds = duration_s(text)
    if seconds < DAY_S or seconds % DAY_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of whole days such as 7d. The time for clicks is --click-window."
        )
    return seconds // DAY_S


if __name__ == "__main__":
    sys.exit(main())
