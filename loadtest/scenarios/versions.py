"""A store with two versions of a model, both made from one bundle. Reloads switch between them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from contract.bundle import GOLDEN, Bundle, open_bundle, write_manifest
from contract.calibration import CALIBRATION, Calibration, FittedCalibration, encode_fitted, sigmoid
from contract.golden import read_golden, write_golden
from service.models import store as stores

SHIFT = 0.7  # added to every logit, so that every probability changes


@dataclass(frozen=True)
class TwoVersions:
    """A store that contains both versions. Initially, `first` is current."""

    store: Path
    first: Bundle
    second: Bundle

    @property
    def bundles(self) -> list[Bundle]:
        return [self.first, self.second]

    def other(self, version: str) -> str:
        """Return the version that is not `version`."""
        return next(b.manifest.version for b in self.bundles if b.manifest.version != version)

    def activate(self, version: str) -> None:
        assert stores.main(["activate", str(self.store), version]) == 0


def two_versions(bundle: Path, folder: Path) -> TwoVersions:
    """Create the second version and the store.

    Args:
        folder: An existing folder, in which `store` and `second` are created.

    Raises:
        RuntimeError: The store refused a bundle.
    """
    second = shifted(bundle, folder / "second")
    store = folder / "store"
    for arguments in (["add", str(store), str(second)], ["add", str(store), str(bundle), "--activate"]):
        if stores.main(arguments) != 0:
            raise RuntimeError(f"ctr-store {' '.join(arguments)} failed; see its error above")
    return TwoVersions(store, open_bundle(bundle), open_bundle(second))


def shifted(bundle: Path, folder: Path) -> Path:
    """Copy a bundle, and change the copy's calibration to add SHIFT to every calibrated logit. Return its folder."""
    shutil.copytree(bundle, folder)
    opened = open_bundle(bundle)
    manifest, fitted, calibration = opened.manifest, opened.calibrator.fitted, opened.calibrator.correction
    golden = []
    for request in read_golden(bundle / GOLDEN):
        ctr = np.asarray(request.ctr)
        logit = np.log(ctr) - np.log1p(-ctr)
        golden.append(msgspec.structs.replace(request, ctr=sigmoid(logit + SHIFT).tolist()))
    write_golden(golden, folder / GOLDEN)
    if fitted is None:
        calibration = Calibration(calibration.scale, calibration.shift + SHIFT)
    else:
        (folder / CALIBRATION).write_bytes(encode_fitted(higher(fitted)))
    name = f"{manifest.name}-shifted"
    write_manifest(
        folder, name, manifest.parameters, manifest.metrics, calibration, manifest.attention, manifest.cascade
    )
    return folder


def higher(fitted: FittedCalibration) -> FittedCalibration:
    """Return a fitted calibration that adds SHIFT to every logit."""
    return msgspec.structs.replace(fitted, knots=tuple((x, y + SHIFT) for x, y in fitted.knots))
