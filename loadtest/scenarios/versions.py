"""Two versions of a model from one bundle, and a store of both: what a reload changes between."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from contract.bundle import GOLDEN, Bundle, Calibration, open_bundle, write_manifest
from contract.golden import GoldenRequest, read_golden, write_golden
from service.models import store as stores

SHIFT = 0.7  # of the logit: every probability is another one


@dataclass(frozen=True)
class TwoVersions:
    """store: both are in it, `first` is current."""

    store: Path
    first: Bundle
    second: Bundle

    @property
    def bundles(self) -> list[Bundle]:
        return [self.first, self.second]

    def other(self, version: str) -> str:
        return next(b.manifest.version for b in self.bundles if b.manifest.version != version)

    def activate(self, version: str) -> None:
        assert stores.main(["activate", str(self.store), version]) == 0


def two_versions(bundle: Path, folder: Path) -> TwoVersions:
    """In a folder that is there and has neither `store` nor `second`."""
    second = shifted(bundle, folder / "second")
    store = folder / "store"
    for arguments in (["add", str(store), str(second)], ["add", str(store), str(bundle), "--activate"]):
        if stores.main(arguments) != 0:
            raise RuntimeError(f"ctr-store {' '.join(arguments)} failed: its words are above")
    return TwoVersions(store, open_bundle(bundle), open_bundle(second))


def shifted(bundle: Path, folder: Path) -> Path:
    """A copy whose every answer is another one: a calibration that adds SHIFT to the logit."""
    shutil.copytree(bundle, folder)
    manifest = open_bundle(bundle).manifest
    golden = [_shifted(one) for one in read_golden(bundle / GOLDEN)]
    write_golden(golden, folder / GOLDEN)
    calibration = Calibration(manifest.calibration.scale, manifest.calibration.shift + SHIFT)
    name = f"{manifest.name}-shifted"
    write_manifest(
        folder, name, manifest.parameters, manifest.metrics, calibration, manifest.attention, manifest.cascade
    )
    return folder


def _shifted(one: GoldenRequest) -> GoldenRequest:
    ctr = np.asarray(one.ctr)
    logit = np.log(ctr) - np.log1p(-ctr)
    return msgspec.structs.replace(one, ctr=Calibration(shift=SHIFT).ctr(logit).tolist())
