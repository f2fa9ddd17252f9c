"""Three small bundles for the tests of the store."""

from pathlib import Path

import pytest

from contract.bundle import open_bundle
from tests.support.small_bundle import write_small_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("three")
    return [write_small_bundle(folder / f"b{seed}", seed=seed, name=f"b{seed}") for seed in range(3)]


@pytest.fixture
def versions(bundles: list[Path]) -> list[str]:
    return [open_bundle(bundle).manifest.version for bundle in bundles]
