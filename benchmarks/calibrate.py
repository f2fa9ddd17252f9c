"""Compare calibrated predictions with the true click probabilities of a generated log with a tenth of its non-clicks.

A small model is trained on the log. Then its predictions are calibrated as ctr-calibrate does it: as they are, with all
logits times 1.3, and with all probabilities times 1.3.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks import RESULTS
from contract.calibration import FittedCalibration, sigmoid
from contract.schema import FeatureSchema
from export.calibrate.fit import Method, fit
from export.calibrate.judge import calibrated_ctr
from export.calibrate.rows import Floats, Rows
from export.calibrate.source import Source, read_prepared_log, tokens_of
from loadtest.report import Table, write_report
from model.data.data_folder import add_data_argument
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import read_prepared
from model.data.readers.generated import LABEL, TRUE_CTR
from model.data.readers.log import SPLITS
from model.data.synthetic import generate
from model.data_config import Data
from model.experiment_config import Experiment, Training
from model.experiments.train import train
from model.stec.stec import STECConfig

NEGATIVE_RATE = 0.1
SCALE = 1.3
SEGMENT = "slot"
ROWS = (1_000_000, 2_500_000, 1_000_000)
SEED = 1
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


def data_section(root: Path) -> Data:
    """Return the [data] section of the sampled log."""
    return Data(reader="generated", folder="sampled", prepared="prepared", negative_rate=NEGATIVE_RATE)


def make_log(root: Path, rows: Sequence[int]) -> Log:
    """Generate a log, keep a tenth of its non-clicks in all splits, train a model on it and score valid and test."""
    data, run = data_section(root), root / "run"
    if generate.main(["--data", str(root), "--seed", str(SEED), "--rows", *map(str, rows)]):
        sys.exit(2)
    random = np.random.default_rng(SEED)
    (root / data.folder).mkdir(exist_ok=True)
    for split in SPLITS:
        log = pl.read_parquet(root / generate.FOLDER / f"{split}.parquet")
        kept = (log[LABEL].to_numpy() == 1) | (random.random(len(log)) < NEGATIVE_RATE)
        log.filter(pl.Series(kept)).write_parquet(root / data.folder / f"{split}.parquet")
    prepare(root, data)
    model = STECConfig(embedding=8, blocks=1, heads=2, ffn=16, embedding_std=0.1)
    training = Training(epochs=2, batch_size=1024, learning_rate=0.005)
    train(Experiment(name="calibrate", data=data, model=model, training=training), root, run)
    prepared = read_prepared(root / data.prepared)
    truth = np.array(prepared.column("test", TRUE_CTR), np.float64)
    return Log(run, prepared.schema, read_prepared_log(run, root, SEGMENT), truth)


def planted(source: Source) -> Iterator[tuple[str, Source]]:
    """Yield the predictions as they are, and with planted errors."""

    def scaled_probability(logit: Floats) -> Floats:
        ctr = (SCALE * sigmoid(logit)).clip(max=0.999)
        return np.log(ctr) - np.log1p(-ctr)

    changes = {
        "as trained": lambda logit: logit,
        f"logits x {SCALE}": lambda logit: SCALE * logit,
        f"probabilities x {SCALE}": scaled_probability,
    }
    for name, change in changes.items():
        valid, test = (replace(rows, logit=change(rows.logit)) for rows in (source.valid, source.test))
        yield name, replace(source, valid=valid, test=test)


def calibrate(log: Log, source: Source, method: Method, by: str | None) -> tuple[Outcome, Outcome, float]:
    """Return predicted / true before and after a calibration, and the seconds that fitting took."""
    start_s = time.perf_counter()

    def tokens(ids: NDArray[np.int64]) -> list[str | None]:
        return tokens_of(log.run, SEGMENT, ids)

    found = fit(source.valid, method, tokens if by else None)
    seconds = time.perf_counter() - start_s
    fitted = FittedCalibration(
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
    log = make_log(options.data, options.rows)
    header = ("predictions", "method", "segments", "before", "after", "worst segment before", "after", "fit")
    rows = []
    methods: tuple[Method, ...] = ("platt", "isotonic")
    for name, source in planted(log.source):
        for method in methods:
            for by in (None, SEGMENT):
                before, after, seconds = calibrate(log, source, method, by)
                ratios = (before.overall, after.overall, before.worst, after.worst)
                rows.append([name, method, by or "none", *(f"{ratio:.4f}" for ratio in ratios), f"{seconds:.2f} s"])
    command = f"python -m benchmarks.calibrate --rows {' '.join(map(str, options.rows))}"
    write_report(options.out, TITLE, text(log, options.rows), [Table("", header, rows)], LIBRARIES, command)
    return 0


def text(log: Log, rows: Sequence[int]) -> str:
    """Return the paragraph below the heading."""
    valid, test = log.source.valid, log.source.test
    return (
        f"The generated log has {rows[1]:,} rows in valid and {rows[2]:,} in test. A tenth of the non-clicks is kept.\n"
        f"Then, valid has {len(valid):,} rows with {valid.clicks:,} clicks, and test has {len(test):,} rows "
        f"with {test.clicks:,}\nclicks. The columns show the mean prediction divided by the mean true probability, on "
        "test in the whole traffic."
    )


if __name__ == "__main__":
    sys.exit(main())
