"""ctr-compare --all: every report of a data set beside STEC's, in the form of the paper's Tables 2 and 3.

Reads the reports of ctr-train --seeds in <folder>/results/*.json, and speed.json of `python -m benchmarks.models`.
Writes models.md, models-flops.png (Figure 3) and models-serving.png to the same folder.
"""

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from model.atomic_folder import write_whole
from model.experiments.plots import draw_auc_over_cost
from model.experiments.run_registry import RESULTS
from model.experiments.significance import (
    Report,
    Seeds,
    check_same_log,
    compare_seeds,
    mean_and_std,
    p_text,
    read_report,
)

BASE = "stec"
SPEED = "speed.json"
Points = list[tuple[str, float, float]]  # a model's name, cost and AUC
HEADER = "model | seeds | test AUC | Impr. | logloss | p of AUC | parameters | FLOPs | rows/s | us a candidate"
TEXT = """Impr.: by how much STEC's mean AUC is above the model's, as the paper has it. p: of no difference from STEC's
AUC, Welch's t-test over the seeds; without a second seed there is none. FLOPs: of one row, a multiply-add being one of
linear layers and matrix products. rows/s: training, a model at a time; a report's own is of runs that shared the
machine. us a candidate: serving, one thread, a request of 100 candidates. `python -m benchmarks.models` measures both,
the models in turn on one CPU; blank where it was not run, as for numeric fields, which it does not take."""


class Speed(msgspec.Struct, frozen=True):
    """us: serving's microseconds for a candidate. rows_per_s: training's."""

    us: Annotated[float, Meta(gt=0)]
    rows_per_s: Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class Entry:
    """What a model's report says, and its speed. None is what an older report lacks, or what was not measured."""

    name: str
    seeds: Seeds
    parameters: int
    flops: int | None
    speed: Speed | None

    @property
    def auc(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(self.seeds.aucs)


def read_leaderboard(folder: Path) -> list[Entry]:
    """Return the models of a folder of experiments, from the reports in its results folder, best AUC first.

    Raises:
        ValueError: For a file that is not a report, or a report of another log than STEC's, naming the file; or when
            there is no stec.json.
    """
    results = folder / RESULTS
    if not (results / f"{BASE}.json").is_file():
        raise ValueError(
            f"{results} has no {BASE}.json to compare with. ctr-train {folder}/{BASE}.toml --seeds N writes it."
        )
    speeds = _speeds(results / SPEED)
    reports = {path: read_report(path) for path in sorted(results.glob("[!.]*.json")) if path.name != SPEED}
    base = reports[results / f"{BASE}.json"].seeds
    standings = [_standing(path, report, base, speeds) for path, report in reports.items()]
    return sorted(standings, key=lambda s: s.auc, reverse=True)


def _speeds(path: Path) -> dict[str, Speed]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Speed])
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}: write it with python -m benchmarks.models") from error


def _standing(path: Path, report: Report, base: Seeds, speeds: Mapping[str, Speed]) -> Entry:
    seeds = report.seeds
    try:
        check_same_log(seeds, base)
    except ValueError as error:
        raise ValueError(f"{path}: {error}: move it out of the folder") from error
    return Entry(path.stem, seeds, report.parameters, report.flops, speeds.get(path.stem))


def markdown(folder: Path, standings: Sequence[Entry], pictures: Sequence[str]) -> str:
    """pictures: the names of those beside the page."""
    base = next(s for s in standings if s.name == BASE)
    place = [s.name for s in standings].index(BASE) + 1
    lines = [
        f"# {folder.name}: every model",
        "",
        f"Of {len(standings)} reports, STEC's is number {place} by mean test AUC. {TEXT}",
    ]
    lines += ["", f"| {HEADER} |", "|---" + "|--:" * HEADER.count("|") + "|"]
    lines += [f"| {' | '.join(_cells(s, base))} |" for s in standings]
    lines += ["", *(f"![{Path(name).stem}]({name})" for name in pictures), ""]
    return "\n".join([*lines, f"Command: `ctr-compare --all {folder}`. Log: {base.seeds.log}.", ""])


def _cells(one: Entry, base: Entry) -> list[str]:
    enough = min(len(one.seeds.aucs), len(base.seeds.aucs)) > 1
    p = compare_seeds(one.seeds, base.seeds)["test AUC"].p if enough and one is not base else None
    return [
        one.name,
        str(len(one.seeds.aucs)),
        mean_and_std([auc * 100 for auc in one.seeds.aucs], 2),
        "base" if one is base else f"{(base.auc / one.auc - 1) * 100:+.2f}%",
        mean_and_std(one.seeds.loglosses, 4),
        "" if p is None else p_text(p),
        f"{one.parameters:,}",
        "" if one.flops is None else f"{one.flops:,}",
        "" if one.speed is None else f"{one.speed.rows_per_s:,.0f}",
        "" if one.speed is None else f"{one.speed.us:.2f}",
    ]


def write_leaderboard(folder: Path) -> Path:
    """Write the page and its pictures to the results folder. Raises ValueError as read_leaderboard() does.

    Returns:
        The path of the page.
    """
    results = folder / RESULTS
    standings, pictures = read_leaderboard(folder), list[str]()
    flops: Points = [(s.name, s.flops, s.auc) for s in standings if s.flops is not None]
    us: Points = [(s.name, s.speed.us, s.auc) for s in standings if s.speed is not None]
    serving = "microseconds to serve a candidate, one thread, 100 a request"
    for name, cost, points in (("flops", "FLOPs of a row", flops), ("serving", serving, us)):
        if points:
            picture = io.BytesIO()
            draw_auc_over_cost(points, cost, BASE, picture)
            write_whole(results / f"models-{name}.png", picture.getvalue())
            pictures.append(f"models-{name}.png")
    write_whole(results / "models.md", markdown(folder, standings, pictures).encode())
    return results / "models.md"
