"""Measure models on logs that are small, have few clicks or are a day old: base rate, --auto, hide and --warm.

Each part trains with ctr-train, as a user would, and adds a table to the report. The logs are generated, except for
Criteo's, which --criteo names. Training times depend on what else the machine does.
"""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks import RESULTS
from loadtest.report import Table, write_report
from model.cli.train import main as ctr_train
from model.data.data_folder import add_data_argument
from model.data.prepare.prepare import prepare
from model.data.readers.generated import REQUEST, TRUE_CTR
from model.data.synthetic import generate
from model.data_config import Data
from model.experiment_config import read_experiment
from model.experiments.run_folder import open_run
from model.experiments.seeds import with_seed
from model.experiments.train import train
from model.experiments.trial import open_log
from model.training.early_stopping import epoch_text
from model.training.fit import predict

MINUTES = 4
CLICK_RATE = "0.005"
RARE_ROWS = ("20000", "5000", "1000000")
DAY_ROWS, NEXT_ROWS = ("160000", "20000", "100000"), ("60000", "10000", "10000")
SEEDS = 5
STUDENT_95 = 2.776  # the quantile of Student's t for 5 seeds
CONFIDENCE_95 = 1.96
MODEL = """
[model]
embedding = 8
blocks = 1
ffn = 32
attention = "request"
"""
SMALL = "batch_size = 256"  # a recipe without penalties
SMALL_BATCH = f"\n[training]\n{SMALL}\n"
DAY_TRAINING = """
[training]
batch_size = 1024
embedding_l2 = 0.3
net_l2 = 1e-3
"""
HIDE = 'hide = [["ad"], ["ad", "campaign"]]\n'
LIBRARIES = ("torch", "numpy", "polars", "scikit-learn")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Entropy:
    """A normalized entropy, with half the width of its 95% interval."""

    value: float
    half: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.half:.4f}"

    @property
    def verdict(self) -> str:
        """Whether the model is better than the base rate."""
        if self.value + self.half < 1:
            return "better"
        return "worse" if self.value - self.half > 1 else "equal"


def normalized_entropy(ctr: Floats, target: Floats, groups: NDArray[np.int64]) -> Entropy:
    """Return the logloss divided by that of the best constant prediction, which is the mean target.

    Args:
        ctr: Predictions, (rows).
        target: The labels or, if they are known, the true probabilities, (rows).
        groups: The group of each row, (rows). Rows of the same group are not independent.
    """
    base = np.full(len(target), target.mean())
    losses, base_losses = cross_entropy(ctr, target), cross_entropy(base, target)
    ratio = losses.mean() / base_losses.mean()
    deviations = np.bincount(groups, losses - ratio * base_losses)
    return Entropy(ratio, CONFIDENCE_95 * float(np.sqrt(np.square(deviations).sum())) / base_losses.sum())


def cross_entropy(ctr: Floats, target: Floats) -> Floats:
    """Return the expected logloss of each row, (rows)."""
    losses: Floats = -(target * np.log(ctr) + (1 - target) * np.log1p(-ctr))
    return losses


def new_log(root: Path, arguments: Sequence[str]) -> None:
    """Generate a log in a data folder, or exit if this fails."""
    if generate.main(["--data", str(root), *arguments]):
        sys.exit(2)


def write_experiment(root: Path, name: str, data: str, training: str = "") -> Path:
    """Write an experiment's file into a data folder, prepare its log if necessary, and return the file."""
    toml = root / f"{name}.toml"
    toml.write_text(f'name = "{name}"\n\n[data]\n{data}{MODEL}{training}')
    section = read_experiment(toml).data
    if not (root / section.prepared).is_dir():
        prepare(root, section)
    return toml


def generated_data(folder: str) -> str:
    """Return the [data] section of a generated log."""
    return f'reader = "generated"\nfolder = "{folder}"\nprepared = "prepared/{folder}"\n'


def run(toml: Path, root: Path, out: Path, *arguments: str) -> float:
    """Run ctr-train and return its duration in seconds, or exit if it fails."""
    start_s = time.monotonic()
    print(f"ctr-train {toml.name} {' '.join(arguments)}", flush=True)
    if ctr_train([str(toml), "--data", str(root), "--out", str(out), *arguments]):
        sys.exit(2)
    return time.monotonic() - start_s


def on_truth(run_folder: Path, root: Path) -> Entropy:
    """Return a run's normalized entropy on the true probabilities of a generated test set."""
    model, experiment, _, _ = open_run(run_folder)
    log = open_log(experiment.data, root)
    column = log.prepared.column
    truth, request = (np.array(column("test", name)) for name in (TRUE_CTR, REQUEST))
    return normalized_entropy(predict(model, log.splits["test"]), truth.astype(np.float64), request - request.min())


def on_labels(run_folder: Path, root: Path) -> Entropy:
    """Return a run's normalized entropy on the test labels."""
    model, experiment, _, _ = open_run(run_folder)
    test = open_log(experiment.data, root).splits["test"]
    return normalized_entropy(predict(model, test), test.labels.astype(np.float64), np.arange(len(test)))


def settings(run_folder: Path) -> str:
    """Return the settings of a run that the search changes."""
    _, experiment, _, metrics = open_run(run_folder)
    training, width = experiment.training, experiment.model.embedding  # type: ignore[union-attr]
    return (
        f"L2 {training.embedding_l2:g}, net L2 {training.net_l2:g}, batch {training.batch_size}, D {width}, learning "
        f"rate {training.learning_rate:g}, epoch {metrics.best}"
    )


def rare_clicks(root: Path) -> Table:
    """Train on few rows with a click rate of 0.5%, by default and with --auto, and test on the true probabilities."""
    root = root / "rare"
    new_log(root, ["--rows", *RARE_ROWS, "--click-rate", CLICK_RATE])
    auto, rows = ["--auto", "--minutes", str(MINUTES)], []
    for name, training, arguments in (("default", "", []), (SMALL, SMALL_BATCH, []), (" ".join(auto), "", auto)):
        toml = write_experiment(root, "rare", generated_data("generated"), training)
        out = root / "runs" / ("auto" if arguments else name.replace(" = ", "-"))
        seconds = run(toml, root, out, *arguments)
        _, _, _, metrics = open_run(out)
        entropy = on_truth(out, root)
        cells = [f"{metrics.valid.normalized_entropy:.4f}", str(entropy), f"{metrics.test.auc:.4f}", entropy.verdict]
        rows.append([name, f"{seconds:.0f} s", settings(out), *cells])
    header = [
        "ctr-train",
        "time",
        "settings",
        "valid NE",
        "test NE, true probability",
        "test AUC",
        "compared with the base rate",
    ]
    train_rows, _, test_rows = (f"{int(number):,}" for number in RARE_ROWS)
    return Table(f"Click rate 0.5%: {train_rows} train rows, {test_rows} test rows", header, rows)


def criteo(root: Path) -> Table:
    """Train on Criteo's rows, five seeds each of the default recipe and of the settings that --auto finds."""
    data = read_experiment(Path("experiments/criteo/stec.toml")).data
    toml = write_experiment(root, "criteo", toml_of(data))
    run(toml, root, root / "runs/criteo-auto", "--auto", "--minutes", str(MINUTES))
    rows = []
    for name, experiment in (("default", read_experiment(toml)), ("--auto", open_run(root / "runs/criteo-auto")[1])):
        entropies, aucs = [], []
        for seed in range(1, SEEDS + 1):
            out = root / f"runs/criteo-{seed}"
            aucs.append(train(with_seed(experiment, seed), root, out).test.auc)
            entropies.append(on_labels(out, root))
        values = [entropy.value for entropy in entropies]
        half = STUDENT_95 * statistics.stdev(values) / SEEDS**0.5
        over_seeds = Entropy(statistics.mean(values), half)
        over_rows = Entropy(over_seeds.value, statistics.mean(entropy.half for entropy in entropies))
        cells = [f"{statistics.mean(aucs):.4f}", str(over_seeds), str(over_rows), over_rows.verdict]
        rows.append([name, settings(root / "runs/criteo-1"), *cells])
    header = [
        "recipe",
        "settings, seed 1",
        "test AUC",
        "test NE, over seeds",
        "test NE, over rows",
        "compared with the base rate",
    ]
    return Table(f"Criteo: {SEEDS} seeds", header, rows)


def toml_of(data: Data) -> str:
    """Return the keys of a [data] section as TOML."""
    document = msgspec.to_builtins(data)
    fields = "".join(
        "[[data.fields]]\n" + "".join(f'{key} = "{value}"\n' for key, value in spec.items() if isinstance(value, str))
        for spec in document.pop("fields")
    )
    keys = ("reader", "folder", "prepared", "min_count", "split_seed")
    return "".join(f"{key} = {msgspec.json.encode(document[key]).decode()}\n" for key in keys) + fields


def unseen_ads(root: Path) -> Table:
    """Train with and without `hide`, and compare the predictions on ads that are not in train with the truth."""
    root = root / "days"
    new_log(root, ["--rows", *DAY_ROWS, "--next-day", *NEXT_ROWS])
    rows = []
    for name, hide in (("day-1", ""), ("day-1-hide", HIDE)):
        toml = write_experiment(root, name, generated_data("generated"), DAY_TRAINING + hide)
        seconds = run(toml, root, root / "runs" / name)
        _, _, _, metrics = open_run(root / "runs" / name)
        assert metrics.truth is not None
        ratios = [metrics.truth.unseen, metrics.truth.overall]
        within = "pass" if abs(metrics.truth.unseen - 1) <= 0.05 else "fail"
        cells = [*(f"{ratio:.3f}" for ratio in ratios), f"{metrics.test.auc:.4f}", within]
        rows.append([hide.strip() or "no hide", f"{seconds:.0f} s", *cells])
    header = ["hide", "time", "unseen ads, predicted / true", "all rows, predicted / true", "test AUC", "within 5%"]
    return Table("Ads that are not in train", header, rows)


def warm_start(root: Path) -> Table:
    """Train on day 2 from scratch, and from day 1's run with a third of day 2's rows."""
    if not (root / "days/runs/day-1").is_dir():
        unseen_ads(root)
    root = root / "days"
    data = generated_data("generated-next-day")
    cold = write_experiment(root, "day-2", data, DAY_TRAINING)
    cold_s = run(cold, root, root / "runs/day-2")
    third = root / "generated-third"
    third.mkdir(exist_ok=True)
    source = root / "generated-next-day"
    train_rows = pl.read_parquet(source / "train.parquet")
    train_rows.head(len(train_rows) // 3).write_parquet(third / "train.parquet")
    for split in ("valid", "test"):
        shutil.copyfile(source / f"{split}.parquet", third / f"{split}.parquet")
    warm = write_experiment(root, "day-2-third", generated_data("generated-third"), DAY_TRAINING + "epochs = 1\n")
    warm_s = run(warm, root, root / "runs/day-2-third", "--warm", str(root / "runs/day-1"))
    rows = []
    for name, out, seconds in (
        ("cold, all rows", "day-2", cold_s),
        ("warm, a third of the rows", "day-2-third", warm_s),
    ):
        _, _, _, metrics = open_run(root / "runs" / out)
        epochs = f"{metrics.best} of {epoch_text(metrics.epochs)}"
        cells = [f"{metrics.valid.logloss:.5f}", f"{metrics.valid.auc:.4f}", f"{metrics.test.logloss:.5f}"]
        rows.append([name, f"{seconds:.0f} s", epochs, *cells])
    return Table("Day 2", ["training", "time", "best epoch", "valid logloss", "valid AUC", "test logloss"], rows)


PARTS: dict[str, Callable[[Path], Table]] = {
    "rare": rare_clicks,
    "criteo": criteo,
    "unseen": unseen_ads,
    "warm": warm_start,
}

TITLES = {
    "rare": "A log with few clicks",
    "criteo": "Criteo's first rows",
    "unseen": "Ads that are not in the training set",
    "warm": "A warm start on the next day",
}
TEXTS = {
    "rare": """A generated log, whose true click probabilities are known. NE is the normalized entropy: the logloss
divided by that of the best constant prediction. On test, it is computed from the true probabilities instead of the
labels. The 95% interval covers the sampling of the test requests. The time includes evaluating and writing the
run.""",
    "criteo": """The file that --criteo names, split 8:1:1 by row. --auto searched with seed 1, and its settings were
then trained with five seeds. NE is the normalized entropy of the test labels. One 95% interval covers the seeds
(Student's t), and the other covers the sampling of the test rows.""",
    "unseen": """A generated log. 5% of the test rows show ads that train does not contain. Predictions are compared
with the true probabilities of the same rows. With `hide`, training hides the ad together with its campaign in 1% of the
rows, in addition to each field alone.""",
    "warm": """The day after the generated log of the part "unseen". A fifth of its rows show ads that are not in that
log's train split. Both models are evaluated on the same rows of the next day.""",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.any_log", description=__doc__)
    add_data_argument(parser)
    parser.add_argument("parts", nargs="*", metavar="PART", default=[*PARTS], help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--criteo", type=Path, help="Criteo's train.txt or train.txt.gz, which the part criteo needs")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"{min(unknown)} is not a part. Choose from {', '.join(PARTS)}.")
    if "criteo" in options.parts and options.criteo is None:
        parser.error("the part criteo needs --criteo FILE. To leave it out, name the other parts.")
    root = options.data / "any-log"
    root.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        if part == "criteo":
            copy_criteo(options.criteo, root)
        argument = " --criteo FILE" if part == "criteo" else ""
        command = f"python -m benchmarks.any_log --data DIR {part}{argument}"
        report = RESULTS / f"any-log-{part}.md"
        write_report(report, TITLES[part], TEXTS[part], [PARTS[part](root)], LIBRARIES, command)
    return 0


def copy_criteo(file: Path, root: Path) -> None:
    """Copy Criteo's file to the data folder of its part."""
    folder = root / "criteo"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    sys.exit(main())
