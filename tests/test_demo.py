"""The demo bundle in the repository is small, complete, and as accurate as its report states."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from contract.bundle import EXPLAIN, KERNEL, MODEL, Bundle, open_bundle
from contract.encode import ModelInput
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import Prepared, read_prepared
from model.data.synthetic import generate
from model.experiment_config import read_experiment
from service.runtime.engine import open_engine
from tests.support.paths import ROOT
from tests.support.sharing import made_once

DEMO = ROOT / "deploy" / "demo"
BATCH = 1000


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return open_bundle(DEMO)


@pytest.fixture(scope="module")
def prepared(shared_folder: Path) -> Prepared:
    """The complete generated log, prepared as in `make demo-bundle`."""
    data = read_experiment(ROOT / "experiments" / "generated" / "stec.toml").data

    def make(root: Path) -> None:
        assert generate.main(["--data", str(root)]) == 0
        prepare(root, data)

    return read_prepared(made_once(shared_folder / "demo-log", make) / data.prepared)


@pytest.fixture(scope="module")
def ctr(demo: Bundle, prepared: Prepared) -> NDArray[np.float64]:
    """The demo bundle's scores for the test split, computed as in the service. Each row is a one-candidate request."""
    ids, values, _ = prepared.split("test")
    ids = ids.astype(np.int64)
    categorical = np.array([f.side == "context" for f in prepared.schema.select("categorical")])
    numeric = np.array([f.side == "context" for f in prepared.schema.select("numeric")])
    sides = [ids[:, categorical], ids[:, ~categorical], values[:, numeric], values[:, ~numeric]]
    requests = [ModelInput(*row) for row in zip(*(side[:, None] for side in sides), strict=True)]
    engine = open_engine(demo, threads=2)
    batches = [engine.run(requests[start : start + BATCH]) for start in range(0, len(requests), BATCH)]
    return np.concatenate([answer for batch in batches for answer in batch])


def test_it_has_the_kernels_graph_and_an_explanation(demo: Bundle) -> None:
    assert demo.manifest.files.keys() >= {MODEL, KERNEL, EXPLAIN}
    assert demo.manifest.attention == "request"


def test_it_is_under_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 2_000_000


def test_its_vocabulary_matches_the_generated_log(demo: Bundle, prepared: Prepared) -> None:
    assert demo.schema == prepared.schema
    sizes = tuple(len(demo.vocabularies[f.name]) for f in demo.schema.select("categorical"))
    assert sizes == prepared.vocabulary_sizes


def test_its_auc_is_within_half_a_point_of_the_true_auc(prepared: Prepared, ctr: NDArray[np.float64]) -> None:
    labels = prepared.split("test")[2]
    assert roc_auc_score(labels, ctr) > roc_auc_score(labels, prepared.column("test", "true_ctr")) - 0.005


def test_it_is_calibrated_overall_in_every_tenth_and_for_unseen_ads(
    prepared: Prepared, ctr: NDArray[np.float64]
) -> None:
    true = np.asarray(prepared.column("test", "true_ctr"))
    column = [f.name for f in prepared.schema.select("categorical")].index("ad")
    unseen = prepared.split("test")[0][:, column] == 0
    assert unseen.mean() == pytest.approx(0.05, abs=0.005)
    assert ctr.mean() / true.mean() == pytest.approx(1, abs=0.02)
    assert ctr[unseen].mean() / true[unseen].mean() == pytest.approx(1, abs=0.10)
    for tenth in np.array_split(np.argsort(ctr, kind="stable"), 10):
        assert ctr[tenth].mean() / true[tenth].mean() == pytest.approx(1, abs=0.10)
