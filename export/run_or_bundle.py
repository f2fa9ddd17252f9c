"""Distinguish a run from a bundle, for the commands that accept either."""

from pathlib import Path

from contract.bundle import MANIFEST
from model.experiments.run_check import METRICS


def is_bundle(folder: Path) -> bool:
    """Return True for a bundle and False for a run.

    Raises:
        ValueError: If the folder is neither.
    """
    if (folder / MANIFEST).is_file():
        return True
    if (folder / METRICS).is_file():
        return False
    raise ValueError(
        f"{folder} is neither a bundle (it has no {MANIFEST}) nor a run (it has no {METRICS}). "
        "Create one with ctr-train EXPERIMENT.toml --out RUN and ctr-export RUN BUNDLE."
    )
