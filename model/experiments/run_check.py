"""Checking that a folder is a run. This does not import torch, so that a wrong path is reported at once."""

from pathlib import Path

METRICS = "metrics.json"  # every run has this file


def check_run(folder: Path) -> None:
    """Check that a folder is a run.

    Raises:
        ValueError: If the folder does not exist or is not a run.
    """
    if not (folder / METRICS).is_file():
        raise ValueError(
            f"{folder} is not a run (it has no {METRICS}). Create one with ctr-train EXPERIMENT.toml --out RUN."
        )
