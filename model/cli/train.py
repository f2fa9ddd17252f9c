"""ctr-train: train an experiment on its prepared log, and write a run folder or, with --seeds, a report on many runs.

If ctr-train is killed, run the same command again to continue after the last evaluation, by default the end of an
epoch. On a CPU, the final weights are the same as those of an uninterrupted run.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.cpu_quota import limit_threads
from model.cli.arguments import INTERRUPTED, add_device_argument, positive_int, positive_minutes
from model.data.data_folder import add_data_argument

if TYPE_CHECKING:
    from model.experiments.auto import Trial
    from model.experiments.run_folder import RunMetrics

OUT_HELP = """the run folder to write; an existing run there is replaced. With --seeds, the parent folder of the run
folders seed-1, seed-2, ...; without --out, no weights are saved"""
SEED_HELP = """use this seed instead of the experiment's. Without --seeds, the run is always trained, even if it is
already in runs.jsonl, and it is not added to runs.jsonl"""
SEEDS_HELP = """train seeds 1 to N and write NAME.json, NAME.md and their pictures to results/, next to NAME.toml.
Finished runs are recorded in results/runs.jsonl and are not trained again. Run the same command in several processes to
divide the remaining runs among them"""
AUTO_HELP = """search for the embedding_l2, net_l2, batch size, embedding width and learning rate that fit the log,
using only valid, and write the run folder of the best model. The settings are printed and written to RUN/chosen.toml"""
MINUTES_HELP = "the time limit for --auto, including the evaluation on test and the time to write the run"
WARM_HELP = """start from the weights of this run, which must have the same model and fields. Embeddings are copied by
token. New tokens start from the row of the unknown token"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    started_s = time.monotonic()  # before the imports, which take seconds
    parser = argparse.ArgumentParser(prog="ctr-train", description=__doc__)
    parser.add_argument("experiment", type=Path, help="an experiment's TOML file")
    add_data_argument(parser)
    add_device_argument(parser)
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, help=SEED_HELP)
    seeds.add_argument("--seeds", type=positive_int, metavar="N", help=SEEDS_HELP)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--auto", action="store_true", help=AUTO_HELP)
    start.add_argument("--warm", type=Path, metavar="RUN", help=WARM_HELP)
    parser.add_argument("--minutes", type=positive_minutes, metavar="M", help=MINUTES_HELP)
    options = parser.parse_args(arguments)
    if options.auto != (options.minutes is not None):
        parser.error("--auto and --minutes M must be used together: ctr-train --auto --minutes 4 X.toml --out RUN")
    if options.seeds is not None and (options.auto or options.warm):
        parser.error("--seeds trains new models with fixed settings. Remove --seeds, or remove --auto and --warm.")
    if options.out is None and options.seeds is None:
        parser.error("--out is missing: specify the run folder to write (required unless you use --seeds)")

    limit_threads()

    from model.training.device import keep_freed_memory

    keep_freed_memory()
    try:
        if options.auto:
            train_best(options, started_s + 60 * options.minutes)
        elif options.seeds is None:
            train_run(options)
        else:
            train_runs(options)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError when out of memory
        print(f"ctr-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ctr-train: interrupted; repeat the command to continue after the last evaluation", file=sys.stderr)
        return INTERRUPTED
    return 0


def train_run(options: argparse.Namespace) -> None:
    """Train one seed, write its run folder and print its test metrics."""
    from model.experiment_config import read_experiment
    from model.experiments.seeds import with_seed
    from model.experiments.train import train

    experiment = read_experiment(options.experiment)
    if options.seed is not None:
        experiment = with_seed(experiment, options.seed)
    metrics = train(experiment, options.data, options.out, options.device, options.warm)
    print_result(metrics, options.out)


def train_best(options: argparse.Namespace, deadline_s: float) -> None:
    """Search for settings until the deadline, write the run folder of the best model and print its settings."""
    from model.experiment_config import read_experiment
    from model.experiments.auto import chosen_toml, train_auto
    from model.experiments.seeds import with_seed

    experiment = read_experiment(options.experiment)
    if options.seed is not None:
        experiment = with_seed(experiment, options.seed)
    trial, metrics = train_auto(experiment, options.data, options.out, deadline_s, options.device, print_trial)
    print(f"\nThe best is trial {trial.number}. To keep its settings, replace these keys in {options.experiment}:\n")
    print(chosen_toml(trial))
    print_result(metrics, options.out)


def print_result(metrics: "RunMetrics", out: Path) -> None:
    """Print the metrics of a run and, on stderr, its warnings."""
    from model.training.progress import with_base_rate

    for warning in metrics.warnings:
        print(f"ctr-train: warning: {warning}", file=sys.stderr)
    before = logloss_before_recomputing(metrics)
    print(f"best epoch {metrics.best}: valid logloss {with_base_rate(metrics.valid)}{before}")
    print(f"test AUC {metrics.test.auc:.5f}, test logloss {with_base_rate(metrics.test)}")
    for name, value in (("AUC within a unit", metrics.test.gauc), ("NDCG@10 within a request", metrics.test.ndcg)):
        if value is not None:
            print(f"test {name} {value:.5f}")
    if (other := metrics.other) is not None:
        print(
            f"{other.weights} weights, best epoch {other.best}: valid AUC {other.valid.auc:.5f}, logloss "
            f"{other.valid.logloss:.5f}; test AUC {other.test.auc:.5f}, logloss {other.test.logloss:.5f}"
        )
    if metrics.positions:
        print(f"position effects on the logit: {', '.join(map(str, metrics.positions))}")
    print(f"run: {out}")


def logloss_before_recomputing(metrics: "RunMetrics") -> str:
    """Return the best epoch's own logloss, and why it differs, or "" if it does not."""
    best = next((epoch for epoch in reversed(metrics.history) if epoch.improved), None)
    if best is None or f"{best.valid.logloss:.5f}" == f"{metrics.valid.logloss:.5f}":
        return ""
    if metrics.positions:
        return f", {best.valid.logloss:.5f} with the position effects"
    when = "before the batch norms' statistics were computed over the whole training set"
    return f", {best.valid.logloss:.5f} {when}"


def print_trial(trial: "Trial") -> None:
    """Print a trial whose training has finished or paused."""
    print(trial, flush=True)


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
