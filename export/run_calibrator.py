"""The calibration of a run: the correction for its log, and calibration.json if ctr-calibrate has written one."""

import os
from pathlib import Path

from contract.calibration import CALIBRATION, Calibration, Calibrator, read_fitted
from contract.schema import FeatureSchema
from model.experiment_config import Experiment
from model.experiments.run_folder import WEIGHTS, file_digests

HOW_TO_FIX = "Remove the file. To calibrate this run, run ctr-calibrate again."


def open_calibrator(run: Path, experiment: Experiment, schema: FeatureSchema) -> Calibrator:
    """Return a run's calibration, after checking that it was fitted for this run's model.

    Args:
        run: The run folder.
        experiment: The run's experiment.
        schema: The run's schema.

    Raises:
        ValueError: If calibration.json is invalid or belongs to another model. The message says what to do.
    """
    correction = Calibration.of_log(experiment.data.negative_rate)
    path = run / CALIBRATION
    if not os.path.lexists(path):  # A broken link is an error, not a run without a calibration.
        return Calibrator(correction, None, schema)
    try:
        fitted = read_fitted(path)
        calibrator = Calibrator(correction, fitted, schema)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). {HOW_TO_FIX}") from error
    except ValueError as error:
        raise ValueError(f"{run}: {error}. {HOW_TO_FIX}") from error
    if fitted.weights != (weights := file_digests(run)[WEIGHTS]):
        raise ValueError(
            f"{path} was fitted for a model whose weights have the digest {fitted.weights[:12]!r}, but {run / WEIGHTS} "
            f"has {weights[:12]!r}. {HOW_TO_FIX}"
        )
    return calibrator
