"""Runs and bundles that tests share, and hypothesis profiles.

The fixtures import torch only when a test needs it, so that tests of the service start quickly.
"""

import gc
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.sharing import made_once, session_folder

# No deadline, because tests must not fail on a busy machine. `--hypothesis-profile full` replaces "default".
settings.register_profile("default", deadline=None, max_examples=40)
settings.register_profile("full", deadline=None, max_examples=1000)
settings.load_profile("default")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """When only timing tests run, skip modules that have none, because importing every module takes long."""
    if config.option.markexpr.startswith("timing") and collection_path.name.startswith("test_"):
        return "mark.timing" not in collection_path.read_text() or None
    return None


def pytest_collection_finish() -> None:
    # Objects created so far live as long as the process, so the garbage collector does not have to scan them.
    gc.freeze()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test workers share."""
    return session_folder(tmp_path_factory)


@pytest.fixture(scope="session")
def run_folder(shared_folder: Path) -> Path:
    """A small STEC run: two epochs on a prepared generated log. Shared: do not change it."""
    from tests.support.small_run import write_run

    return made_once(shared_folder / "pipeline", write_run) / "run"


@pytest.fixture(scope="session")
def bundle_folder(shared_folder: Path, run_folder: Path) -> Path:
    """The small run's bundle, exported without its log. Shared: do not change it."""
    from tests.support.small_run import write_bundle

    return made_once(shared_folder / "bundle", lambda folder: write_bundle(run_folder, folder))


@pytest.fixture(scope="session")
def first_level_run(shared_folder: Path, run_folder: Path) -> Path:
    """The small run, with the head's weights for all levels but the first scaled to 1%. Shared: do not change it."""
    from tests.support.runs import with_first_level_only

    return made_once(shared_folder / "first-level-run", lambda folder: with_first_level_only(run_folder, folder))


@pytest.fixture(scope="session")
def cascade_bundle(shared_folder: Path, run_folder: Path, first_level_run: Path) -> Path:
    """The bundle of `first_level_run`, with a cascade calibrated on its log. Shared: do not change it."""
    from tests.support.small_run import write_cascade_bundle

    return made_once(
        shared_folder / "cascade-bundle",
        lambda folder: write_cascade_bundle(first_level_run, folder, run_folder.parent),
    )
