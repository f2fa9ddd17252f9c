"""The rows to calibrate with: valid and test of the log that a run was trained on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from contract.bundle import VOCABULARY
from contract.calibration import Calibration
from contract.schema import FeatureSchema
from contract.vocabulary import FIRST, UNKNOWN, open_vocabulary
from export.calibrate.rows import Floats, Rows
from model.data.prepare.prepared import Prepared, read_prepared
from model.experiments.run_folder import WEIGHTS, check_log_of_run, data_of, open_run
from model.experiments.trial import fingerprint, load_split
from model.training.fit import predict_logits

SPLITS = ("valid", "test")


@dataclass(frozen=True)
class Source:
    """The rows that a calibration is fitted to, and those that it is measured on.

    Attributes:
        valid: The rows to fit to.
        test: The rows to measure on.
        names: A description of both, for the report.
        weights: The SHA-256 of the weights that scored the rows.
    """

    valid: Rows
    test: Rows
    names: tuple[str, str]
    weights: str


def read_prepared_log(run: Path, data: Path, by: str | None) -> Source:
    """Score valid and test of the log that a run was trained on.

    Args:
        run: The run folder.
        data: The base folder for the experiment's relative paths.
        by: The segment field, or None.

    Raises:
        ValueError: If the folder is not a run, or the log has changed since training.
    """
    weights = weights_digest(run)
    model, experiment, schema, _ = open_run(run)
    check_segment_field(schema, by)
    prepared = read_prepared(data / experiment.data.prepared)
    check_log_of_run(run, prepared)
    facts = data_of(run)
    if facts is not None and facts.fingerprint != fingerprint(prepared.folder):
        raise ValueError(
            f"{prepared.folder} has changed since {run} was trained, so its valid may contain rows of the run's train. "
            f"Train again, or calibrate on later traffic: ctr-calibrate {run} JOINED."
        )
    correction = Calibration.of_log(experiment.data.negative_rate)
    valid, test = (score_split(prepared, name, model, correction, by) for name in SPLITS)
    return Source(valid, test, (f"valid of {prepared.folder}", f"test of {prepared.folder}"), weights)


def weights_digest(run: Path) -> str:
    """Return the SHA-256 of a run's weights, as FittedCalibration contains it."""
    with (run / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def score_split(prepared: Prepared, name: str, model: nn.Module, correction: Calibration, by: str | None) -> Rows:
    """Return a split of a prepared log with the model's logits."""
    split = load_split(prepared, name)
    fields = prepared.schema.select("categorical")
    candidate = [column for column, field in enumerate(fields) if field.side == "candidate"]
    segment = None
    if by is not None:
        segment = np.array(split.ids[:, [field.name for field in fields].index(by)], np.int64)
    logit = finite(correction.corrected(predict_logits(model, split).numpy()))
    importance = np.ones(len(split)) if split.weights is None else split.weights.astype(np.float64)
    cold = (np.asarray(split.ids[:, candidate]) == UNKNOWN).any(axis=1)
    return Rows(logit, split.labels.astype(np.float64), importance, split.negative_rate, cold, segment)


def finite(logit: Floats) -> Floats:
    """Return the logits.

    Raises:
        ValueError: If one is not finite.
    """
    if not np.isfinite(logit).all():
        raise ValueError("the model's logits are not finite. Train again.")
    return logit


def check_segment_field(schema: FeatureSchema, by: str | None) -> None:
    """Check that a field can have segments.

    Raises:
        ValueError: If it is not a categorical field of the context. The message says why it must be.
    """
    valid = [field.name for field in schema.select("categorical", "context")]
    if by is None or by in valid:
        return
    choices = f"Use one of: {', '.join(valid)}."
    field = next((field for field in schema.fields if field.name == by), None)
    if field is None:
        raise ValueError(f"--by {by}: the model has no such field. {choices}")
    if field.side == "candidate":
        raise ValueError(
            f"--by {by}: this is a field of the candidates. Different shifts for the candidates of a request would "
            f"change their order, and the cascade would rule out candidates that belong to the best. {choices}"
        )
    raise ValueError(f"--by {by}: this is a numeric field, and segments need a categorical one. {choices}")


def tokens_of(run: Path, field: str, ids: NDArray[np.int64]) -> list[str | None]:
    """Return the tokens of ids of a field, None for unknown and missing values."""
    vocabulary = open_vocabulary(run / VOCABULARY, field)
    known = ids >= FIRST
    tokens = iter(vocabulary.tokens_of(ids[known].astype(np.int32)))
    return [next(tokens) if is_known else None for is_known in known.tolist()]
