"""ctr-train: train an experiment on its prepared log and write a run folder, or with --seeds, a report over many runs.

If ctr-train is killed, start the same command again: it continues after the last finished epoch. On a CPU it ends with
the same weights as an uninterrupted run.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from model.cli.arguments import INTERRUPTED, add_device_argument, positive_int
from model.data.data_folder import add_data_argument

OUT_HELP = """the run folder to write; an older run there is replaced. With --seeds, the folder for the run folders
seed-1, seed-2, ...; without --out, no weights are kept"""
SEED_HELP = """the seed to use instead of the experiment's. Without --seeds, the run is always trained, even if
runs.jsonl has it, and it is not added to runs.jsonl"""
SEEDS_HELP = """train the seeds 1 to N and write NAME.json, NAME.md and their pictures to results/ beside NAME.toml.
Finished runs are lines of results/runs.jsonl and are not trained again. Start the same command in several processes to
share the remaining runs between them"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="ctr-train", description=__doc__)
    parser.add_argument("experiment", type=Path, help="an experiment's TOML file")
    add_data_argument(parser)
    add_device_argument(parser)
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, help=SEED_HELP)
    seeds.add_argument("--seeds", type=positive_int, metavar="N", help=SEEDS_HELP)
    options = parser.parse_args(arguments)
    if options.out is None and options.seeds is None:
        parser.error("--out is missing: name the run folder to write (only --seeds works without it)")

    from model.training.device import keep_freed_memory

    keep_freed_memory()
    try:
        if options.seeds is None:
            train_run(options)
        else:
            train_runs(options)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError when out of memory
        print(f"ctr-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-train: interrupted; the same command continues after the last finished epoch", file=sys.stderr)
        return INTERRUPTED
    return 0


def train_run(options: argparse.Namespace) -> None:
    """Train one seed into a run folder and print its test metrics."""
    from model.experiment_config import read_experiment
    from model.experiments.seeds import with_seed
    from model.experiments.train import train

    experiment = read_experiment(options.experiment)
    if options.seed is not None:
        experiment = with_seed(experiment, options.seed)
    metrics = train(experiment, options.data, options.out, options.device)
    print(f"best epoch {metrics.best_epoch}: test AUC {metrics.test.auc:.5f}, test logloss {metrics.test.logloss:.5f}")
    print(f"run: {options.out}")


def train_runs(options: argparse.Namespace) -> None:
    """Train the missing seeds, write the report and print the mean test metrics."""
    from model.experiments.run_registry import results_folder
    from model.experiments.train import train_seeds

    runs = train_seeds(options.experiment, options.seeds, options.data, options.out, options.device)
    aucs, losses = [r.metrics.test.auc for r in runs], [r.metrics.test.logloss for r in runs]
    deviation = f" ± {statistics.stdev(aucs):.5f}" if len(aucs) > 1 else ""
    mean = f"test AUC {statistics.mean(aucs):.5f}{deviation}, test logloss {statistics.mean(losses):.5f}"
    print(f"{len(runs)} seeds: {mean}")
    print(f"report: {results_folder(options.experiment) / options.experiment.stem}.md")


if __name__ == "__main__":
    sys.exit(main())
