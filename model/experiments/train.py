"""ctr-train: an experiment and its prepared data in, a run folder out; or, with --seeds, a report over many runs.

A killed ctr-train, called again, goes on from the last finished epoch and, on a CPU, ends with the same weights.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.atomic_folder import check_replaceable
from model.data.data_folder import add_data_argument
from model.experiment_config import Experiment, read_experiment
from model.experiments.report import write_report
from model.experiments.run_folder import METRICS, RunMetrics, save_run
from model.experiments.run_registry import FinishedRun, claim, results_folder, run_list
from model.experiments.seeds import Place, run_missing, with_seed
from model.experiments.trial import checkpoint_of, open_log, run_trial, unfinished
from model.training.device import CPU, add_device_argument, keep_freed_memory
from model.training.progress import LiveTable

INTERRUPTED = 130  # as a shell tells it
SEED_HELP = """instead of the experiment's own. Without --seeds, the run is trained whatever runs.jsonl has, for its
weights, and is not added there"""
SEEDS_HELP = """Trains the seeds 1 to N, and writes NAME.json, NAME.md and their pictures to results/ beside NAME.toml.
Finished runs are lines of results/runs.jsonl and are never trained again. Start the same command twice, or more
often, and the processes share the runs that are left: twice is twice as fast, where there are the cores."""


def train(experiment: Experiment, data: Path, out: Path, device: torch.device = CPU) -> RunMetrics:
    """Trains one seed and writes the run folder.

    Raises:
        ValueError: when the data is not prepared, or not by this experiment, `out` is something else than a run,
            or another process is at the same run.
    """
    check_replaceable(out, METRICS)
    log = open_log(experiment.data, data)
    with claim(unfinished(experiment, data).with_suffix(".lock")) as ours:
        if not ours:
            raise ValueError(
                f"{experiment.name}, seed {experiment.training.seed}: another process trains this very run"
            )
        checkpoint = checkpoint_of(experiment, log.facts, data)
        watch = LiveTable(experiment, len(log.splits["train"]))
        model, metrics = run_trial(experiment, log, checkpoint, watch, device)
        save_run(out, experiment, model, log.prepared.schema, log.prepared.vocabulary, metrics, log.facts)
        checkpoint.remove()
    return metrics


def train_seeds(toml: Path, seeds: int, data: Path, keep: Path | None, device: torch.device = CPU) -> list[FinishedRun]:
    """The seeds 1 to `seeds` of an experiment: what its folder's runs.jsonl lacks is trained, then reported.

    Raises:
        ValueError: before training, as train() does, and when one of `keep`'s folders is something else than a run.
    """
    experiment = read_experiment(toml)
    place = Place(open_log(experiment.data, data), run_list(toml), data, keep, device)
    wanted = [with_seed(experiment, seed) for seed in range(1, seeds + 1)]
    _check_keep(wanted, place)
    runs = run_missing(wanted, place, LiveTable, _print_run)
    write_report(results_folder(toml) / toml.stem, experiment, runs)
    return runs


def _check_keep(wanted: Sequence[Experiment], place: Place) -> None:
    """Before hours of training: whether the weights can be written, and which will not be there."""
    missing, without = place.missing(wanted), list[int]()
    for experiment in wanted:
        seed = experiment.training.seed
        if (out := place.kept(seed)) is None:
            return
        if experiment in missing:
            check_replaceable(out, METRICS)
        elif not (out / METRICS).is_file():
            without.append(seed)
    if without:
        seeds = ", ".join(map(str, without))
        way_out = f"--seed N --out {place.keep}/seed-N trains one again"
        print(f"{place.runs.path} has seeds {seeds} already: their weights are not kept; {way_out}", file=sys.stderr)


def _print_run(run: FinishedRun) -> None:
    test = run.metrics.test
    print(f"seed {run.metrics.seed}: test AUC {test.auc:.5f}, test logloss {test.logloss:.5f}", flush=True)


def _one(arguments: argparse.Namespace) -> None:
    experiment = read_experiment(arguments.experiment)
    if arguments.seed is not None:
        experiment = with_seed(experiment, arguments.seed)
    metrics = train(experiment, arguments.data, arguments.out, arguments.device)
    print(f"best epoch {metrics.best_epoch}: test AUC {metrics.test.auc:.5f}, test logloss {metrics.test.logloss:.5f}")
    print(f"run: {arguments.out}")


def _many(arguments: argparse.Namespace) -> None:
    runs = train_seeds(arguments.experiment, arguments.seeds, arguments.data, arguments.out, arguments.device)
    aucs, losses = [r.metrics.test.auc for r in runs], [r.metrics.test.logloss for r in runs]
    spread = f" ± {statistics.stdev(aucs):.5f}" if len(aucs) > 1 else ""
    mean = f"test AUC {statistics.mean(aucs):.5f}{spread}, test logloss {statistics.mean(losses):.5f}"
    print(f"{len(runs)} seeds: {mean}")
    print(f"report: {results_folder(arguments.experiment) / arguments.experiment.stem}.md")


def positive(text: str) -> int:
    """For argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(prog="ctr-train", description=__doc__)
    parser.add_argument("experiment", type=Path, help="an experiment's TOML file")
    add_data_argument(parser)
    add_device_argument(parser)
    out_help = (
        "the run folder to write; an older run there is replaced. With --seeds: the folder for seed-1, seed-2, ...; "
    )
    parser.add_argument("--out", type=Path, help=out_help + "without it, no weights are kept")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help=SEED_HELP)
    which.add_argument("--seeds", type=positive, metavar="N", help=SEEDS_HELP)
    arguments = parser.parse_args()
    if arguments.out is None and arguments.seeds is None:
        parser.error("--out is missing: where to write the run (only --seeds does without)")
    keep_freed_memory()
    try:
        (_many if arguments.seeds else _one)(arguments)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # torch's want of memory is a RuntimeError
        print(f"ctr-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-train: interrupted; the same command goes on after the last finished epoch", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
