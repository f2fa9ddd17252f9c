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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray

from contract.store import VERSIONS
from export.cycle.report import Report, read_report
from export.predict.predict import CTR, open_inputs, predict
from export.predict.scorer import open_scorer
from loadtest.loop.daemon import Daemon, running
from loadtest.loop.demo import new_output
from loadtest.loop.steady import Steady
from loadtest.servers import ServerFailed, without_settings
from model.data.readers.named import find_named_files
from model.data.synthetic.traffic import Behavior, Traffic
from model.data.synthetic.traffic_files import write_days

EXPERIMENT = Path(__file__).with_name("week.toml")
FIRST_DAY = date(2026, 11, 23)
HISTORY_DAYS, DAYS, WINDOW_DAYS = 2, 7, 3
LAST_DAYS = 3  # on which the retrained models must be better
BEHAVIOR = Behavior(users=2000, drift_std=0.35, late_share=0.0)
# A demo has few clicks, so the gate only rejects models that are much worse.
LIMITS = ("--margin", "0.05", "--tolerance", "0.3", "--segment-tolerance", "0.6")
TRUE = "probability"  # a column of the impressions
RATE = 20.0  # requests/s to the server
SERVED_TIMEOUT_S = 120.0


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
    days = [FIRST_DAY + timedelta(days=number) for number in range(HISTORY_DAYS + DAYS + 1)]
    truth = write_days(traffic, len(days), requests, out / "requests", out / "events").impressions()
    print(
        f"simulated {len(days)} days with {len(truth):,} impressions in {time.monotonic() - start_s:.0f} s", flush=True
    )
    reports = [cycle(out, days[HISTORY_DAYS])]
    service = Daemon("service", "CTR_", {"CTR_STORE": str(out / "store"), "CTR_WORKERS": "1"}, out / "service.log")
    late: list[str] = []
    with running(service):
        sample = traffic.requests(traffic.times(500, len(days) - 1), first=len(days) * requests)
        with Steady(service.url, sample, RATE) as steady:
            late += serve(steady, reports[0])
            for day in days[HISTORY_DAYS + 1 : -1]:
                reports.append(cycle(out, day))
                late += serve(steady, reports[-1])
        service.stop()
    versions = [out / "store" / VERSIONS / report.version for report in reports]
    found = [
        quality(out, rows_of(truth, requests, day), day, version, versions[0])
        for day, version in zip(days[HISTORY_DAYS + 1 :], versions, strict=True)
    ]
    print(table(found))
    draw(found, out / "week.png")
    print(step_times(reports))
    answered = sum(steady.answers.values())
    print(
        f"{answered:,} requests were answered by {len(steady.answers)} versions, and {steady.failed} failed. "
        f"{time.monotonic() - start_s:.0f} s in all. Look at {out}/week.png."
    )
    return [*late, *failures(steady), *worse(found)]


def cycle(out: Path, day: date) -> Report:
    """Run ctr-cycle for a day, as if all of the day's events had arrived and no later ones. Return its report.

    Raises:
        CycleFailed: No version was added.
    """
    start_s = time.monotonic()
    until = datetime.combine(day, datetime.min.time(), UTC) + timedelta(days=2, hours=1)
    command = [sys.executable, "-m", "export.cli.cycle", str(EXPERIMENT)]
    command += ["--requests", str(out / "requests"), "--events", str(out / "events"), "--store", str(out / "store")]
    command += ["--out", str(out / "work"), "--day", day.isoformat(), "--until", until.isoformat()]
    command += ["--window", f"{WINDOW_DAYS}d", "--keep", str(DAYS), "--activate", *LIMITS]
    process = subprocess.run(  # noqa: S603
        command, env=without_settings(os.environ), capture_output=True, text=True, check=False
    )
    folder = out / "work" / "days" / day.isoformat()
    report = read_report(folder / "cycle.json")
    if process.returncode != 0 or report is None:
        raise CycleFailed(f"ctr-cycle exited with code {process.returncode}:\n{process.stdout}{process.stderr}")
    print(f"{day}: version {report.version[:12]} in {time.monotonic() - start_s:.0f} s", flush=True)
    return report


def serve(steady: Steady, report: Report) -> list[str]:
    """Wait until a version answers. Return a problem if it does not."""
    if (seconds := steady.wait_for(report.version, SERVED_TIMEOUT_S)) is None:
        return [f"version {report.version[:12]} of {report.day} was not served within {SERVED_TIMEOUT_S:g} s"]
    print(f"  served {seconds:.1f} s later, {steady.failed} failed requests so far", flush=True)
    return []


def rows_of(truth: pl.DataFrame, requests: int, day: date) -> pl.DataFrame:
    """Return the impressions of a day. Requests are numbered, the same number on each day."""
    return truth.filter(pl.col("request") // requests == (day - FIRST_DAY).days)


def quality(folder: Path, rows: pl.DataFrame, day: date, retrained: Path, frozen: Path) -> Quality:
    """Return the quality of two bundles on the impressions of a day.

    Args:
        folder: The folder for temporary files.
        rows: The impressions.
        day: Their day.
        retrained: The bundle that was served on the day.
        frozen: The first bundle.
    """
    source = folder / "impressions.parquet"
    rows.write_parquet(source)
    found = [normalized_entropy(*scored(bundle, source, folder / "scored.parquet")) for bundle in (retrained, frozen)]
    return Quality(day, *found)


def scored(bundle: Path, source: Path, target: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the predictions of a bundle, and the true probabilities, (rows) each."""
    scorer = open_scorer(bundle)
    predict(scorer, open_inputs(scorer, find_named_files([str(source)]).sources, [TRUE], None), target, [TRUE])
    result = pl.read_parquet(target)
    return result[CTR].to_numpy(), result[TRUE].to_numpy()


def normalized_entropy(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Return the expected logloss, divided by that of a constant prediction of the mean true probability."""
    mean = np.full_like(true, true.mean())
    return cross_entropy(true, predicted) / cross_entropy(true, mean)


def cross_entropy(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Return the expected logloss of predictions."""
    return float(-(true * np.log(predicted) + (1 - true) * np.log1p(-predicted)).mean())


def failures(steady: Steady) -> list[str]:
    """Return a problem if a request failed."""
    return [f"{steady.failed} requests failed, such as {steady.examples[0]}"] if steady.failed else []


def worse(found: Sequence[Quality]) -> list[str]:
    """Return a problem for each of the last days on which the retrained model was not better."""
    return [
        f"{day.day}: the retrained model has the normalized entropy {day.retrained:.4f}, the first one {day.frozen:.4f}"
        for day in found[-LAST_DAYS:]
        if day.retrained >= day.frozen
    ]


def table(found: Sequence[Quality]) -> str:
    """Return a table of the quality on each day."""
    lines = ["normalized entropy against the true probabilities:", "day         retrained  first version"]
    return "\n".join([*lines, *(f"{day.day}  {day.retrained:9.4f}  {day.frozen:13.4f}" for day in found)])


def step_times(reports: Sequence[Report]) -> str:
    """Return the mean time of each step."""
    names = list(dict.fromkeys(name for report in reports for name in report.steps))
    times = {name: [report.steps[name].seconds for report in reports if name in report.steps] for name in names}
    return "mean seconds of a step: " + ", ".join(f"{name} {sum(all_) / len(all_):.1f}" for name, all_ in times.items())


def draw(found: Sequence[Quality], path: Path) -> None:
    """Plot the quality of both models over the days."""
    mpl.use("agg")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    days = [f"{day.day:%d %b}" for day in found]
    axes.plot(days, [day.frozen for day in found], "C3o-", label="the first version, never retrained")
    axes.plot(days, [day.retrained for day in found], "C0o-", label="retrained every day")
    axes.set(xlabel="day, before any model is trained on it", ylabel="normalized entropy against the true probability")
    axes.legend()
    figure.savefig(path, dpi=120)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("loadtest.loop.week", description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/loop-demo/week"), help="output folder, which is replaced"
    )
    parser.add_argument("--requests", type=int, default=5000, help="requests on each simulated day")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same traffic and models")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
