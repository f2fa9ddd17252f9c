"""Effect of resampling Frappe's train negatives on a model's AUC."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from benchmarks import RESULTS
from loadtest.report import Table, write_report
from model.cli.arguments import positive_int
from model.data.data_folder import add_data_argument
from model.data.prepare.prepare import prepare
from model.data.readers.log import SPLITS
from model.experiment_config import Experiment, common_data, read_experiment
from model.experiments.run_registry import RUNS, FinishedRun, RunList, run_list
from model.experiments.seeds import RunContext, run_missing
from model.experiments.significance import mean_and_std
from model.experiments.trial import open_log
from model.training.device import keep_freed_memory
from model.training.progress import EpochTable

TITLE = "Frappe with other train negatives"
TEXT = """Valid and test are the official files. Train contains the official rows, but the items in its negatives are
resampled. Each is sampled from all items except those that the same user has in a positive of any file, in a negative
of valid or test, or in another negative of train. The train file that the experiments use (`given`) was sampled by the
same rule. The figures are test AUCs for seed 1. A different seed alone changes them by 0.05 to 0.1."""
READER = "frappe"
USER, ITEM, LABEL = "user", "item", "label"


def redraw(splits: dict[str, pl.DataFrame], seed: int) -> pl.DataFrame:
    """Return train with resampled items in its negatives and everything else unchanged.

    Raises:
        ValueError: A user has more negatives than there are items to sample from.
    """
    random, train = np.random.default_rng(seed), splits["train"]
    negative = pl.col(LABEL) == 0
    rows = pl.concat([split.select(USER, ITEM, redrawn=negative & (name == "train")) for name, split in splits.items()])
    items = rows[ITEM].unique().sort()
    taken = dict(rows.filter(~pl.col("redrawn")).group_by(USER).agg(ITEM).iter_rows())
    drawn = train[ITEM].to_numpy().copy()
    negatives = train.with_row_index().filter(negative).group_by(USER, maintain_order=True).agg("index")
    for user, index in negatives.iter_rows():
        left = items.filter(~items.is_in(taken.get(user, []))).to_numpy()
        if len(left) < len(index):
            raise ValueError(f"user {user} has {len(index)} negatives in train, but only {len(left)} items to sample")
        drawn[index] = random.choice(left, len(index), replace=False)
    return train.with_columns(pl.Series(ITEM, drawn, train[ITEM].dtype))


def write_draw(given: Path, folder: Path, seed: int) -> None:
    """Write train, valid and test in the format that the experiments read. given: folder with the official files."""
    splits = {name: pl.read_parquet(given / f"{name}.parquet") for name in SPLITS}
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in (splits | {"train": redraw(splits, seed)}).items():
        split.write_parquet(folder / f"{name}.parquet")


def run_on_draw(draw: int, experiments: Sequence[Experiment], data: Path, folder: Path) -> list[FinishedRun]:
    """Train each experiment on this draw, and return the runs. Runs that are already in `folder` are not repeated."""
    raw, prepared = f"draw-{draw}", f"prepared/draw-{draw}"
    section = msgspec.structs.replace(experiments[0].data, folder=raw, prepared=prepared)
    if not (folder / prepared).is_dir():
        write_draw(data / experiments[0].data.folder, folder / raw, draw)
        prepare(folder, section)
    place = RunContext(open_log(section, folder), RunList(folder / RUNS), folder)
    return run_missing([msgspec.structs.replace(e, data=section) for e in experiments], place, EpochTable)


def row(name: str, given: FinishedRun, on_draws: Sequence[FinishedRun]) -> list[str]:
    """Return a model's row: the test AUC on the given file and on each draw, and the mean over the draws."""
    percent = [run.metrics.test.auc * 100 for run in on_draws]
    return [name, f"{given.metrics.test.auc * 100:.2f}", *(f"{p:.2f}" for p in percent), mean_and_std(percent, 2)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "experiments", type=Path, nargs="+", help="experiments on Frappe, e.g. experiments/frappe/dcn.toml"
    )
    parser.add_argument("--draws", type=positive_int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/draws"),
        help="folder for draws and runs (default: %(default)s)",
    )
    add_data_argument(parser)
    options = parser.parse_args()
    keep_freed_memory()
    experiments = [read_experiment(path) for path in options.experiments]
    try:
        log = common_data(experiments)
    except ValueError as error:
        parser.error(str(error))
    if log.reader != READER:
        parser.error(f"{options.experiments[0]} reads {log.reader}; only the train file of {READER} can be resampled")
    place = RunContext(open_log(log, options.data), run_list(options.experiments[0]), options.data)
    given = run_missing(experiments, place, EpochTable)
    draws = [run_on_draw(draw, experiments, options.data, options.folder) for draw in range(1, options.draws + 1)]
    rows = [
        row(path.stem, run, on_draws) for path, run, *on_draws in zip(options.experiments, given, *draws, strict=True)
    ]
    header = ["model", "given", *(f"draw {n}" for n in range(1, options.draws + 1)), "mean of the draws"]
    names = " ".join(map(str, options.experiments))
    command = f"python -m benchmarks.redraw {names} --draws {options.draws}"
    write_report(RESULTS / "redraw.md", TITLE, TEXT, [Table("", header, rows)], ["torch"], command)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
