"""The cascade's margins keep at least the promised share of the best candidates."""

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import kernel
from contract.bundle import EXPLAIN, KERNEL, MODEL, OUTPUT, SCREEN, open_bundle
from contract.cascade import survivors
from export.bundle import export
from export.cascade import CANDIDATES, KS, REQUESTS, calibrate, calibrated_margin, draw_requests, measure
from export.onnx_file import WEIGHTS
from model.data.prepare.prepared import read_prepared
from tests.support.runs import DATA, with_weights

LOGITS = st.floats(-5, 5, width=32)


@given(
    screen=arrays(np.float32, st.integers(1, 30), elements=LOGITS),
    k=st.integers(1, 40),
    margin=st.floats(0, 3),
    slate=st.integers(1, 50),
)
def test_the_best_k_of_the_first_level_always_survive(
    screen: NDArray[np.float32], k: int, margin: float, slate: int
) -> None:
    kept = survivors(screen, k, margin, slate)
    assert (kept | ~survivors(screen, k, margin, 1000)).all()  # Splitting into slates never removes survivors.
    best = np.argsort(-screen, kind="stable")[:k]
    assert kept[best].all()
    assert kept.sum() >= min(k, len(screen))


def test_recall_on_the_calibration_requests_is_the_target() -> None:
    random = np.random.default_rng(0)
    full = random.normal(size=(200, 50)).astype(np.float32)
    screen = (full + 0.3 * random.normal(size=full.shape)).astype(np.float32)
    for k in (1, 5, 20):
        rule = measure(screen, full, k, calibrated_margin(screen, full, k))
        assert rule.recall >= 0.999 - 1 / (200 * k)
        assert k / 50 <= rule.scored < 1
        assert measure(screen, full, k, 0.0).recall < rule.recall


def test_a_first_level_that_ranks_perfectly_needs_no_margin() -> None:
    full = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    assert calibrated_margin(full, full, 5) == 0
    assert measure(full, full, 5, 0.0).scored == pytest.approx(5 / 50)


def test_a_bundle_exported_with_its_log_has_a_cascade_and_stores_the_weights_once(
    cascade_bundle: Path, bundle_folder: Path
) -> None:
    manifest = open_bundle(cascade_bundle).manifest
    assert {rule.k for rule in manifest.cascade} <= set(KS)
    assert manifest.cascade
    assert all(rule.candidates == CANDIDATES and rule.requests == REQUESTS for rule in manifest.cascade)
    assert all(rule.recall > 0.99 and 0 < rule.scored <= 0.5 for rule in manifest.cascade)
    assert manifest.files.keys() >= {MODEL, EXPLAIN, SCREEN}
    assert (KERNEL in manifest.files) == kernel.is_usable()
    without = open_bundle(bundle_folder).manifest  # A run of the same size that was exported without its log.
    assert without.cascade == ()
    assert SCREEN not in without.files
    sizes = [(folder / WEIGHTS).stat().st_size for folder in (cascade_bundle, bundle_folder)]
    assert sizes[0] - sizes[1] < 20_000  # The difference is the first level, not a second embedding table.


def test_a_first_level_that_rules_out_no_candidate_gives_no_rule(
    cascade_bundle: Path, run_folder: Path, tmp_path: Path
) -> None:
    """The same graph gives rules as it is, and none if its logits are multiplied by 0."""
    prepared = read_prepared(run_folder.parent / DATA.prepared)
    folder = Path(shutil.copytree(cascade_bundle, tmp_path / "graphs"))
    assert calibrate(folder, prepared)
    screen = onnx.load(folder / SCREEN, load_external_data=False)
    for node in screen.graph.node:
        for position, name in enumerate(node.output):
            if name == OUTPUT:
                node.output[position] = "useful"
    screen.graph.node.append(onnx.helper.make_node("Mul", ["useful", "zero"], [OUTPUT]))
    screen.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    (folder / SCREEN).write_bytes(screen.SerializeToString())
    assert calibrate(folder, prepared) == []


@pytest.mark.full
def test_a_first_level_that_rules_out_no_candidate_gives_no_cascade(run_folder: Path, tmp_path: Path) -> None:
    """The recipe's L2 has the same effect, because it makes embeddings small compared with the eps of batch norm."""
    prepared = read_prepared(run_folder.parent / DATA.prepared)
    run = with_weights(
        run_folder, tmp_path / "run", lambda w: w | {"embedding.table.weight": w["embedding.table.weight"] / 1e3}
    )
    manifest, _ = export(run, tmp_path / "bundle", prepared)
    assert manifest.cascade == ()
    assert SCREEN not in manifest.files


def test_a_log_that_the_run_was_not_trained_on_is_rejected(run_folder: Path, tmp_path: Path) -> None:
    prepared = read_prepared(run_folder.parent / DATA.prepared)
    facts = msgspec.structs.replace(prepared.facts, data=msgspec.structs.replace(DATA, min_count=2))
    prepared = replace(prepared, facts=facts)
    with pytest.raises(ValueError, match=r"is not the log that .* was trained on"):
        export(run_folder, tmp_path / "bundle", prepared)


def test_a_sampled_request_has_the_context_of_one_row_and_candidates_of_other_rows(run_folder: Path) -> None:
    prepared = read_prepared(run_folder.parent / DATA.prepared)
    requests = draw_requests(prepared, "test")
    assert len(requests) == REQUESTS
    ids, _, _ = prepared.split("test")
    context = [i for i, f in enumerate(prepared.schema.select("categorical")) if f.side == "context"]
    candidate = [i for i, f in enumerate(prepared.schema.select("categorical")) if f.side == "candidate"]
    contexts, candidates = ({tuple(row) for row in ids[:, columns].tolist()} for columns in (context, candidate))
    for one in requests[:20]:
        assert one.candidate_ids.shape == (CANDIDATES, len(candidate))
        assert tuple(one.context_ids[0].tolist()) in contexts
        assert all(tuple(row) in candidates for row in one.candidate_ids.tolist())


def test_recall_holds_for_a_smaller_k_and_more_candidates_than_in_the_calibration() -> None:
    random = np.random.default_rng(0)
    full = random.normal(size=(300, 1000)).astype(np.float32)
    screen = (full + 0.5 * random.normal(size=full.shape)).astype(np.float32)
    calibrated = 10
    margin = calibrated_margin(screen[:, :100], full[:, :100], calibrated)
    for k in (1, 4, 10):
        for candidates in (30, 100, 400, 1000):
            kept = np.array([survivors(row[:candidates], calibrated, margin, 100) for row in screen])
            best = np.argpartition(-full[:, :candidates], k - 1, axis=1)[:, :k]
            assert np.take_along_axis(kept, best, axis=1).mean() >= 0.997, (k, candidates)
