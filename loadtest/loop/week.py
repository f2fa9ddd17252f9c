"""Show seven days of the loop: python -m loadtest.loop.week, the second part of `make loop-demo`

The click probabilities of the simulated ads drift from day to day. After each day, ctr-cycle trains a new version on
the last days and activates it, while the server answers requests without pause. Each version is then evaluated on the
day after, before any model is trained on it, against the true probabilities. So is the first version, as if nobody had
retrained it.

The exit code is 1 if a request fails, a version is not served, or the retrained models are not better at the end.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray

from export.cycle.report import Report, read_report
from export.predict.predict import CTR, open_inputs, predict
from export.predict.scorer import open_scorer
from loadtest.loop.daemon import Daemon, running
from loadtest.loop.demo import MARKER, new_output
from loadtest.loop.steady import Steady
from loadtest.servers import ServerFailed, without_settings
from model.data.readers.named import find_named_files
from model.data.synthetic.traffic import DAY_S, Behavior, Traffic
from model.data.synthetic.traffic_files import write_days
from model.data.synthetic.traffic_truth import KEY

EXPERIMENT = Path(__file__).with_name("week.toml")
FIRST_DAY = date(2026, 11, 23)
HISTORY_DAYS, DAYS, WINDOW_DAYS = 2, 7, 3
LAST_DAYS = 3  # on which the retrained models must be better
BEHAVIOR = Behavior(users=2000, drift_std=0.35, late_share=0.0)
# A demo has few clicks, so the gate only rejects models that are much worse.
LIMITS = ("--margin", "0.05", "--tolerance", "0.3", "--segment-tolerance", "0.6")
RATE = 20.0  # requests/s to the server
SERVED_TIMEOUT_S = 60.0


class CycleFailed(RuntimeError):
    """ctr-cycle did not add a version."""


@dataclass(frozen=True)
class Quality:
    """The normalized entropy of two models on a day, against the true probabilities.

    Attributes:
        day: The day.
        retrained: That of the version that was served on this day.
        frozen: That of the first version.
    """

    day: date
    retrained: float
    frozen: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Return 1 if a claim does not hold, and 2 if the demo could not run."""
    options = parse_arguments(argv)
    try:
        new_output(options.out)
        problems = run(options.out.absolute(), options.requests, options.seed)
    except (OSError, ValueError, ServerFailed, CycleFailed) as error:
        print(f"loop-demo: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"loop-demo: {problem}", file=sys.stderr)
    return int(bool(problems))


def run(out: Path, requests: int, seed: int) -> list[str]:
    """Run the demo in a new folder. Return the claims that do not hold."""
    start_s = time.monotonic()
    traffic = Traffic(seed, datetime.combine(FIRST_DAY, datetime.min.time(), UTC).timestamp(), BEHAVIOR)
    days = HISTORY_DAYS + DAYS + 1
    truth = write_days(traffic, days, requests, out / "requests", out / "events").impressions()
    print(f"simulated {days} days with {len(truth):,} impressions in {time.monotonic() - start_s:.0f} s", flush=True)
    trained = [FIRST_DAY + timedelta(days=HISTORY_DAYS + number) for number in range(DAYS)]
    reports = [cycle(out, trained[0])]
    service = Daemon("service", "CTR_", {"CTR_STORE": str(out / "store"), "CTR_WORKERS": "1"}, out / "service.log")
    late: list[str] = []
    with running(service):
        sample = traffic.requests(traffic.times(500, days - 1), first=days * requests)
        with Steady(service.url, sample, RATE) as steady:
            late += serve(steady, reports[0])
            for day in trained[1:]:
                reports.append(cycle(out, day))
                late += serve(steady, reports[-1])
        service.stop()
    join_rest(out, trained[-1] + timedelta(days=1))
    found = [quality(out, truth, reports[number], reports[0]) for number in range(DAYS)]
    print(table(found))
    draw(found, out / "week.png")
    print(step_times(reports))
    answered = sum(steady.answers.values())
    print(
        f"{answered:,} requests were answered by {len(steady.answers)} versions, and {steady.failed} failed. "
        f"{time.monotonic() - start_s:.0f} s in all. Look at {out}/week.png."
    )
    return [*late, *failures(steady), *worse(found)]
