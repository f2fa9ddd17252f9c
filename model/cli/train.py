"""ctr-train: train an experiment on its prepared log, and write a run folder or, with --seeds, a report on many runs.

If ctr-train is killed, run the same command again to continue after the last finished epoch. On a CPU, the final
weights are the same as those of an uninterrupted run.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.cpu_quota import limit_threads
from model.cli.arguments import INTERRUPTED, add_device_argument, positive_int
from model.data.data_folder import add_data_argument

OUT_HELP = """the run folder to write; an existing run there is replaced. With --seeds, the parent folder of the run
folders seed-1, seed-2, ...; without --out, no weights are saved"""
SEED_HELP = """use this seed instead of the experiment's. Without --seeds, the run is always trained, even if it is
already in runs.jsonl, and it is not added to runs.jsonl"""
SEEDS_HELP = """train seeds 1 to N and write NAME.json, NAME.md and their pictures to results/, next to NAME.toml.
Finished runs are recorded in results/runs.jsonl and are not trained again. Run the same command in several processes to
divide the remaining runs among them"""


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
        parser.error("--out is missing: specify the run folder to write (required unless you use --seeds)")

    limit_threads()

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
        print("ctr-train: interrupted; repeat the command to continue after the last finished epoch", file=sys.stderr)
        return INTERRUPTED
    return 0


def train_run(options: argparse.Namespace) -> None:
    """Train one seed, write its run folder and print its test metrics."""
    from model.experiment_config import read_experiment
    from model.experiments.seeds import with_seed
    from model.experiments.train import train
    from model.training.progress import with_base_rate

    experiment = read_experiment(options.experiment)
    if options.seed is not None:
        experiment = with_seed(experiment, options.seed)
    metrics = train(experiment, options.data, options.out, options.device)
    for warning in metrics.warnings:
        print(f"ctr-train: warning: {warning}", file=sys.stderr)
    test = f"test AUC {metrics.test.auc:.5f}, test logloss {with_base_rate(metrics.test)}"
    print(f"best epoch {metrics.best_epoch}: {test}")
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
