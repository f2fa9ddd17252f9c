"""The leaderboard of a data set: every model's report compared with STEC's, as in the paper's Tables 2 and 3.

The input consists of the reports in <folder>/results/*.json, which ctr-train --seeds writes, and of speed.json, which
`python -m benchmarks.models` writes. The output consists of models.md, models-flops.png (Figure 3) and
models-serving.png, in the same folder.
"""

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from model.atomic_folder import write_whole
from model.experiments.plots import draw_auc_over_cost
from model.experiments.run_registry import RESULTS
from model.experiments.significance import (
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
HEADER = (
    "model | weights | seeds | test AUC | Impr. | logloss | p of AUC | parameters | FLOPs | rows/s | µs per candidate"
)
TEXT = """If a model's report has raw and averaged weights, the row shows those that are better on valid. Impr. is the
relative improvement of STEC's mean AUC over the model's, as in the paper. p is the p-value of Welch's t-test between
the model's AUCs and STEC's, which requires two seeds. FLOPs are per row and count one for each multiply-add of linear
layers and matrix products. rows/s is the training speed of one model at a time; the speeds in the reports are from
runs that shared the machine. µs per candidate is the serving time on one thread, for a request with 100 candidates.
`python -m benchmarks.models` measures both speeds on one CPU, alternating between the models. Blank cells were not
measured. The benchmark does not support numeric fields."""


class Speed(msgspec.Struct, frozen=True):
    """The speed of a model.

    Attributes:
        us: The serving time in µs per candidate.
        rows_per_s: The training speed in rows per second.
    """

    us: Annotated[float, Meta(gt=0)]
    rows_per_s: Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class Entry:
    """A model's row of the leaderboard, from its report. None means not measured."""

    name: str
    weights: str
    seeds: Seeds
    parameters: int
    flops: int | None
    speed: Speed | None

    @property
    def auc(self) -> float:
        """The mean test AUC over the seeds."""
        return statistics.mean(self.seeds.aucs)


def read_leaderboard(folder: Path) -> list[Entry]:
    """Return the models in a folder of experiments, read from the reports in its results folder, best AUC first.

    Raises:
        ValueError: If there is no stec.json, or if a file is not a report or uses a different log from STEC's report.
            The message names the file.
    """
    results = folder / RESULTS
    if not (results / f"{BASE}.json").is_file():
        raise ValueError(
            f"{results} has no {BASE}.json to compare with. Run ctr-train {folder}/{BASE}.toml --seeds N to create it."
        )
    speeds = read_speeds(results / SPEED)
    reports = {path: read_report(path) for path in sorted(results.glob("[!.]*.json")) if path.name != SPEED}
    base = reports[results / f"{BASE}.json"].seeds
    entries = []
    for path, report in reports.items():
        try:
            check_same_log(report.seeds, base)
        except ValueError as error:
            raise ValueError(f"{path}: {error}. Move the file out of the folder.") from error
        entries.append(Entry(path.stem, *report.better_weights, report.parameters, report.flops, speeds.get(path.stem)))
    return sorted(entries, key=lambda entry: entry.auc, reverse=True)


def read_speeds(path: Path) -> dict[str, Speed]:
    """Return the speed of each model, or an empty dict if there is no file.

    Raises:
        ValueError: If the file cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Speed])
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}. Write it again with python -m benchmarks.models.") from error


def markdown(folder: Path, entries: Sequence[Entry], pictures: Sequence[str]) -> str:
    """Return the page as Markdown.

    Args:
        folder: The folder of experiments.
        entries: The models, best AUC first.
        pictures: The file names of the pictures next to the page.
    """
    base = next(entry for entry in entries if entry.name == BASE)
    rank = [entry.name for entry in entries].index(BASE) + 1
    lines = [
        f"# {folder.name}: every model",
        "",
        f"STEC is number {rank} of {len(entries)} models by mean test AUC. {TEXT}",
    ]
    lines += ["", f"| {HEADER} |", "|---" + "|--:" * HEADER.count("|") + "|"]
    lines += [f"| {' | '.join(cells(entry, base))} |" for entry in entries]
    lines += ["", *(f"![{Path(name).stem}]({name})" for name in pictures), ""]
    return "\n".join([*lines, f"Command: `ctr-compare --all {folder}`. Log: {base.seeds.log}.", ""])


def cells(entry: Entry, base: Entry) -> list[str]:
    """Return the cells of a model's row."""
    has_p = entry is not base and min(len(entry.seeds.aucs), len(base.seeds.aucs)) > 1
    return [
        entry.name,
        entry.weights,
        str(len(entry.seeds.aucs)),
        mean_and_std([auc * 100 for auc in entry.seeds.aucs], 2),
        "base" if entry is base else f"{(base.auc / entry.auc - 1) * 100:+.2f}%",
        mean_and_std(entry.seeds.loglosses, 4),
        p_text(compare_seeds(entry.seeds, base.seeds)["test AUC"].p) if has_p else "",
        f"{entry.parameters:,}",
        "" if entry.flops is None else f"{entry.flops:,}",
        "" if entry.speed is None else f"{entry.speed.rows_per_s:,.0f}",
        "" if entry.speed is None else f"{entry.speed.us:.2f}",
    ]


def write_leaderboard(folder: Path) -> Path:
    """Write the page and its pictures to the results folder. Raises ValueError like read_leaderboard().

    Returns:
        The path of the page.
    """
    results = folder / RESULTS
    entries, pictures = read_leaderboard(folder), list[str]()
    flops: Points = [(e.name, e.flops, e.auc) for e in entries if e.flops is not None]
    serving_us: Points = [(e.name, e.speed.us, e.auc) for e in entries if e.speed is not None]
    serving = "serving time in µs per candidate, one thread, 100 candidates per request"
    for name, cost, points in (("flops", "FLOPs per row", flops), ("serving", serving, serving_us)):
        if points:
            picture = io.BytesIO()
            draw_auc_over_cost(points, cost, BASE, picture)
            write_whole(results / f"models-{name}.png", picture.getvalue())
            pictures.append(f"models-{name}.png")
    write_whole(results / "models.md", markdown(folder, entries, pictures).encode())
    return results / "models.md"
