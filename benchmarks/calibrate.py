"""Compare calibrated predictions with the true click probabilities of a generated log with a tenth of its non-clicks.

A small model is trained on the log. Then its predictions are calibrated as ctr-calibrate does it: as they are, with all
logits times 1.3, and with all probabilities times 1.3.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks import RESULTS
from contract.calibration import Calibration, FittedCalibration, sigmoid
from contract.schema import FeatureSchema
from export.calibrate.fit import Method, fit
from export.calibrate.judge import calibrated_ctr
from export.calibrate.rows import Floats, Rows
from export.calibrate.source import Source, score_split, tokens_of, weights_digest
from loadtest.report import Table, write_report
from model.data.data_folder import add_data_argument
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import read_prepared
from model.data.readers.generated import LABEL, REQUEST, TRUE_CTR
from model.data.readers.log import SPLITS
from model.data.synthetic import generate
from model.data_config import Data
from model.experiment_config import Experiment, Training
from model.experiments.run_folder import open_run
from model.experiments.train import train
from model.stec.stec import STECConfig

NEGATIVE_RATE = 0.1
SCALE = 1.3
SEGMENT = "slot"
ROWS = (600_000, 6_000_000, 1_000_000)
CLICK_RATE = 0.2  # so that the smallest slot has enough clicks
FOLDERS = SAME_DAYS, LATER_DAYS = "same-days", "later-days"
SEED = 1
HEADER = ("predictions", "method", "segments", "before", "after", "worst segment before", "after", "CPU time to fit")
TITLE = "Calibration against the true probability"
LIBRARIES = ("torch", "numpy", "polars", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Log:
    """A run on a generated log, with its scored rows.

    Attributes:
        run: The run folder.
        schema: The run's fields.
        source: The rows of valid and test, with segments.
        truth: The true probability of each row of test, (rows).
    """

    run: Path
    schema: FeatureSchema
    source: Source
    truth: Floats


@dataclass(frozen=True)
class Outcome:
    """Predicted / true probability on test.

    Attributes:
        overall: All rows.
        segments: Each segment with a shift, by its token.
    """

    overall: float
    segments: dict[str, float]

    @property
    def worst(self) -> float:
        """The ratio of the segment that is furthest from 1."""
        return max(self.segments.values(), key=lambda ratio: abs(ratio - 1))


def write_splits(root: Path, folder: str, same_days: bool) -> None:
    """Write the generated log with a tenth of its non-clicks.

    Args:
        root: The data folder.
        folder: The folder to write.
        same_days: Whether valid and test are requests of the same days. Otherwise, test is later.
    """
    random, days = np.random.default_rng(SEED), np.random.default_rng(SEED + 1)
    logs = {split: pl.read_parquet(root / generate.FOLDER / f"{split}.parquet") for split in SPLITS}
    if same_days:
        both = pl.concat([logs["valid"], logs["test"]])
        first, share = both[REQUEST][0], len(logs["valid"]) / len(both)
        is_valid = days.random(both[REQUEST][-1] - first + 1) < share
        in_valid = pl.Series(is_valid[both[REQUEST].to_numpy() - first])
        logs |= {"valid": both.filter(in_valid), "test": both.filter(~in_valid)}
    (root / folder).mkdir(exist_ok=True)
    for split, log in logs.items():
        kept = (log[LABEL].to_numpy() == 1) | (random.random(len(log)) < NEGATIVE_RATE)
        log.filter(pl.Series(kept)).write_parquet(root / folder / f"{split}.parquet")


def data_section(folder: str) -> Data:
    """Return the [data] section of a sampled log."""
    return Data(reader="generated", folder=folder, prepared=f"prepared/{folder}", negative_rate=NEGATIVE_RATE)


def train_run(root: Path) -> Path:
    """Sample the generated log, train a model on it, and return the run folder."""
    for folder in FOLDERS:
        write_splits(root, folder, folder == SAME_DAYS)
        prepare(root, data_section(folder))
    model = STECConfig(embedding=8, blocks=1, heads=2, ffn=16, embedding_std=0.1)
    training = Training(epochs=2, batch_size=1024, learning_rate=0.005)
    experiment = Experiment(name="calibrate", data=data_section(SAME_DAYS), model=model, training=training)
    train(experiment, root, root / "run")
    return root / "run"


def score_log(root: Path, run: Path, folder: str) -> Log:
    """Score valid and test of a sampled log with a run. All sampled logs have the same train, and so the same ids."""
    model, experiment, schema, _ = open_run(run)
    prepared = read_prepared(root / data_section(folder).prepared)
    correction = Calibration.of_log(experiment.data.negative_rate)
    valid, test = (score_split(prepared, split, model, correction, SEGMENT) for split in ("valid", "test"))
    truth = np.array(prepared.column("test", TRUE_CTR), np.float64)
    return Log(run, schema, Source(valid, test, ("valid", "test"), weights_digest(run)), truth)


def planted(source: Source) -> Iterator[tuple[str, Source]]:
    """Yield the predictions as they are, and with planted errors."""

    def scaled_probability(logit: Floats) -> Floats:
        ctr = (SCALE * sigmoid(logit)).clip(max=0.999)
        logits: Floats = np.log(ctr) - np.log1p(-ctr)
        return logits

    changes = {
        "as trained": lambda logit: logit,
        f"logits x {SCALE}": lambda logit: SCALE * logit,
        f"probabilities x {SCALE}": scaled_probability,
    }
    for name, change in changes.items():
        valid, test = (replace(rows, logit=change(rows.logit)) for rows in (source.valid, source.test))
        yield name, replace(source, valid=valid, test=test)


def calibrate(log: Log, source: Source, method: Method, by: str | None) -> tuple[Outcome, Outcome, float]:
    """Return predicted / true before and after a calibration, and the CPU time of fitting in seconds."""
    start_s = time.process_time()

    def tokens(ids: NDArray[np.int64]) -> list[str | None]:
        return tokens_of(log.run, SEGMENT, ids)

    found = fit(source.valid, method, tokens if by else None)
    seconds = time.process_time() - start_s
    fitted = FittedCalibration(
        weights=source.weights,
        method=found.method,
        knots=found.knots,
        rows=len(source.valid),
        clicks=source.valid.clicks,
        segment_field=by,
        segments=found.segments,
    )
    before, after = sigmoid(source.test.logit), calibrated_ctr(source.test, fitted, log.schema)
    return compare(source.test, before, log), compare(source.test, after, log), seconds


def compare(rows: Rows, ctr: Floats, log: Log) -> Outcome:
    """Return predicted / true overall and by segment.

    A kept non-click counts for those that were dropped. The weights are the same in the numerator and the denominator,
    so they add little noise to the ratio.
    """
    assert rows.segment is not None
    predicted, true = rows.weight * ctr, rows.weight * log.truth
    ids = np.unique(rows.segment)
    names = tokens_of(log.run, SEGMENT, ids)
    ratios = {
        str(name): float(predicted[rows.segment == each].sum() / true[rows.segment == each].sum())
        for each, name in zip(ids.tolist(), names, strict=True)
    }
    return Outcome(float(predicted.sum() / true.sum()), ratios)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibrate", description=__doc__)
    add_data_argument(parser)
    parser.add_argument("--rows", type=int, nargs=3, default=ROWS, metavar=("TRAIN", "VALID", "TEST"))
    parser.add_argument("--out", type=Path, default=RESULTS / "calibrate.md", help="the report")
    options = parser.parse_args(arguments)
    size = ["--rows", *map(str, options.rows), "--click-rate", str(CLICK_RATE)]
    if generate.main(["--data", str(options.data), "--seed", str(SEED), *size]):
        return 2
    run = train_run(options.data)
    log, later = (score_log(options.data, run, folder) for folder in FOLDERS)
    tables = [
        Table("Valid and test are requests of the same days", HEADER, table(log, planted(log.source))),
        Table("Test is later than valid", HEADER, table(later, [("as trained", later.source)])),
    ]
    command = f"python -m benchmarks.calibrate --rows {' '.join(map(str, options.rows))}"
    write_report(options.out, TITLE, text(log, options.rows), tables, LIBRARIES, command)
    return 0


def table(log: Log, sources: Iterable[tuple[str, Source]]) -> list[list[str]]:
    """Return a row for each source, method, and with and without segments."""
    rows, methods = [], list[Method](["platt", "isotonic"])
    for (name, source), method, by in product(sources, methods, (None, SEGMENT)):
        before, after, seconds = calibrate(log, source, method, by)
        ratios = (before.overall, after.overall, before.worst, after.worst)
        rows.append([name, method, by or "none", *(f"{ratio:.4f}" for ratio in ratios), f"{seconds:.2f} s"])
    return rows


def text(log: Log, rows: Sequence[int]) -> str:
    """Return the paragraph below the heading."""
    valid, test = log.source.valid, log.source.test
    return f"""The generated log has {rows[1]:,} rows in valid and {rows[2]:,} in test.
Its click rate is {CLICK_RATE:.0%}. A tenth of the non-clicks is kept.
Then, valid has {len(valid):,} rows with {valid.clicks:,} clicks, and test has
{len(test):,} rows with {test.clicks:,} clicks. The columns show the mean prediction divided by the mean true
probability, on test in the whole traffic. If test is later, it contains new ads and other days of the week. A
calibration cannot foresee effects that the model does not know."""


if __name__ == "__main__":
    sys.exit(main())
