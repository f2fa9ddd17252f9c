"""The small run's bundle."""

from pathlib import Path

import pytest

from export.bundle import export


@pytest.fixture(scope="session")
def bundle_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: do not change it."""
    folder = tmp_path_factory.mktemp("bundles") / "small"
    export(run_folder, folder)
    return folder
