"""A run with calibration.json: every way to score its bundle gives the same calibrated probabilities."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import polars as pl
import pytest

import kernel
from contract.bundle import EXPLAIN, GOLDEN, KERNEL, MODEL, SCREEN, Bundle, BundleError, open_bundle, write_manifest
from contract.calibration import CALIBRATION, SegmentShift, encode_fitted
from contract.encode import Encoder, ModelInput, join
from contract.golden import read_golden
from contract.reference import REFERENCE
from export.bundle import export
from export.cli.explain import main as explain
from export.cli.export import main as export_command
from export.cli.predict import main as predict
from export.golden import golden_inputs
from export.predict.scorer import open_scorer
from loadtest.scenarios.versions import SHIFT, shifted
from model.data.prepare.prepared import read_prepared
from model.experiments.run_folder import open_run, save_run
from service.models import verify
from service.runtime.cascade import screened
from service.runtime.engine import open_engine
from tests.support.calibrations import FIELD, expected_ctr, fitted_for, with_calibration
from tests.support.graphs import needs_kernel
from tests.support.processes import Server, post, serving
from tests.support.request_log import read_log
from tests.support.runs import DATA

DEVICES = ("phone", "tablet", "desktop", None)
CANDIDATES: list[dict[str, Any]] = [
    {"id": f"ad-{number}", "features": {"ad": f"ad-{number}", "format": "video", "bid": 0.3 * number}}
    for number in range(1, 9)
]


def request_of(device: str | None, **changes: Any) -> dict[str, Any]:
    context = {"device": device, "hour": 21, "session_depth": 2}
    return {"context": context, "candidates": CANDIDATES, "timeout_ms": 10_000, **changes}


@pytest.fixture(scope="module")
def run(first_level_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_calibration(first_level_run, tmp_path_factory.mktemp("calibrated") / "run")


@pytest.fixture(scope="module")
def folder(run: Path, run_folder: Path) -> Path:
    """The bundle of `run`, with a cascade."""
    export(run, run.parent / "bundle", read_prepared(run_folder.parent / DATA.prepared))
    return run.parent / "bundle"


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return open_bundle(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, CTR_TIMEOUT_MS="10000") as server:
        yield server


def encoded(bundle: Bundle, device: str | None, candidates: list[dict[str, Any]] = CANDIDATES) -> ModelInput:
    encoder = Encoder(bundle.schema)
    tokens = encoder.tokens(request_of(device)["context"], [candidate["features"] for candidate in candidates])
    return encoder.ids(tokens, bundle.vocabularies)[0]


def expected(bundle: Bundle, device: str | None) -> list[float]:
    """Return the probabilities of CANDIDATES, from the raw logits of model.onnx."""
    session = onnxruntime.InferenceSession(str(bundle.folder / MODEL))
    (logits,) = session.run(["logit"], join([encoded(bundle, device)]))
    return [expected_ctr(logit, DATA.negative_rate, device) for logit in logits.tolist()]


def test_a_calibration_is_a_file_of_the_bundle_and_needs_format_5(run: Path, bundle: Bundle) -> None:
    assert bundle.manifest.format_version == 5
    assert (bundle.folder / CALIBRATION).read_bytes() == (run / CALIBRATION).read_bytes()
    assert CALIBRATION in bundle.manifest.files
    assert bundle.calibrator.fitted == fitted_for(run)
    assert {MODEL, EXPLAIN, SCREEN} <= bundle.manifest.files.keys()


def test_a_run_without_a_calibration_gives_the_same_bundle_as_before(cascade_bundle: Path, bundle: Bundle) -> None:
    without = open_bundle(cascade_bundle)
    assert without.manifest.format_version == 2
    assert without.calibrator.fitted is None
    changed = {
        name for name in bundle.manifest.files if bundle.manifest.files[name] != without.manifest.files.get(name)
    }
    assert changed == {CALIBRATION, GOLDEN, REFERENCE}  # the reference has deciles of probabilities


@pytest.mark.parametrize("device", DEVICES)
def test_the_server_answers_and_explains_with_calibrated_probabilities(
    server: Server, bundle: Bundle, device: str | None
) -> None:
    answer = post(f"{server.url}/v1/score", json=request_of(device)).json()
    ctr = [score["ctr"] for score in answer["scores"]]
    np.testing.assert_allclose(ctr, expected(bundle, device), rtol=1e-5)
    explained = post(f"{server.url}/v1/explain", json=request_of(device, pairs=3)).json()["explanations"]
    np.testing.assert_allclose([e["ctr"] for e in explained], ctr, rtol=1e-4)
    for explanation in explained:
        listed = sum(pair["contribution"] for pair in explanation["pairs"])
        assert explanation["bias"] + listed + explanation["others"] == pytest.approx(explanation["logit"], abs=1e-5)
        assert explanation["ctr"] == pytest.approx(1 / (1 + np.exp(-explanation["calibrated_logit"])), rel=1e-12)
        assert expected_ctr(explanation["logit"], DATA.negative_rate, device) == pytest.approx(explanation["ctr"])


def test_segments_matter(bundle: Bundle) -> None:
    assert len({tuple(expected(bundle, device)) for device in DEVICES}) == len(DEVICES)


def test_golden_answers_hold_for_the_bundle_and_the_server(folder: Path, server: Server) -> None:
    assert verify.main([str(folder)]) == 0
    assert verify.main([str(folder), "--url", server.url]) == 0


def test_a_replay_of_the_request_log_gives_the_logged_probabilities(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    settings = {"CTR_REQUEST_LOG": str(log), "CTR_REQUEST_LOG_SAMPLE": "1", "CTR_WORKERS": "1"}
    with serving(folder, CTR_TIMEOUT_MS="10000", **settings) as server:
        for device in DEVICES:
            assert post(f"{server.url}/v1/score", json=request_of(device)).status_code == 200
        server.process.terminate()
        assert server.process.wait(30) == 0  # The log is complete.
    for line, device in zip(read_log(log), DEVICES, strict=True):
        assert isinstance(line.candidates, list)
        assert len(line.candidates) == len(CANDIDATES)
        for candidate in line.candidates:  # The log has the raw logit, and the calibrated probability.
            assert candidate.logit is not None
            assert candidate.ctr == pytest.approx(expected_ctr(candidate.logit, DATA.negative_rate, device))
    assert verify.main([str(folder), "--log", str(log)]) == 0
    assert "4 requests" in capsys.readouterr().out


def test_golden_answers_detect_a_missing_calibration(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / CALIBRATION).unlink()
    with pytest.raises(BundleError, match=r"calibration\.json is missing"):
        open_bundle(copy)
    write_manifest(copy, "small", 1, {}, open_bundle(folder).manifest.calibration)
    assert verify.main([str(copy)]) == 1


@needs_kernel
def test_the_kernel_and_onnxruntimes_operators_give_the_same_probabilities(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [encoded(bundle, device) for device in DEVICES]
    answers = {}
    for graph in (KERNEL, MODEL):
        if graph == MODEL:
            monkeypatch.setattr(kernel, "__file__", "/nonexistent/kernel/__init__.py")
        engine = open_engine(bundle, threads=1)
        assert engine.graph == graph
        answers[graph] = np.concatenate(engine.run(batch))
    np.testing.assert_allclose(answers[KERNEL], answers[MODEL], rtol=1e-4)


def test_requests_of_different_segments_in_one_batch_get_their_own_shifts(bundle: Bundle) -> None:
    engine = open_engine(bundle, threads=1)
    # The requests have different sizes, so that a wrong request index cannot go unnoticed.
    batch = [encoded(bundle, device, CANDIDATES[: 8 - 2 * number]) for number, device in enumerate(DEVICES)]
    for request, scored, device in zip(batch, engine.score(batch), DEVICES, strict=True):
        (alone,) = engine.score([request])
        np.testing.assert_allclose(scored.ctr, alone.ctr, rtol=1e-6)
        np.testing.assert_allclose(scored.ctr, expected(bundle, device)[: len(scored.ctr)], rtol=1e-5)


def test_the_cascade_returns_calibrated_probabilities_of_the_best_candidates(bundle: Bundle) -> None:
    engine = open_engine(bundle, threads=1)
    rule = bundle.manifest.cascade[0]
    many = [{"features": {"ad": f"ad-{n}", "format": "video", "bid": n / 50}} for n in range(rule.candidates)]
    batch = [encoded(bundle, device, many) for device in ("phone", "tablet")]
    for request, ruled in zip(
        batch, engine.score([screened(request, rule.k, bundle.manifest.cascade) for request in batch]), strict=True
    ):
        (full,) = engine.score([request])
        survivors = ~np.isnan(ruled.ctr)
        assert 0 < survivors.sum() < len(many)
        assert survivors[np.argsort(-full.ctr)[: rule.k]].all()
        np.testing.assert_allclose(ruled.ctr[survivors], full.ctr[survivors], rtol=1e-5)


def test_predicting_with_the_run_and_with_the_bundle_gives_the_same_probabilities(
    run: Path, bundle: Bundle, tmp_path: Path
) -> None:
    names = [field.name for field in bundle.schema.fields]
    rows = [
        {**dict.fromkeys(names), **request_of(device)["context"], **candidate["features"]}
        for device in DEVICES
        for candidate in CANDIDATES
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    for folder in (run, bundle.folder):
        out = tmp_path / "scores.parquet"
        assert predict([str(folder), str(tmp_path / "rows.parquet"), "--out", str(out)]) == 0
        ctr = pl.read_parquet(out)["ctr"].to_numpy()
        np.testing.assert_allclose(ctr, np.concatenate([expected(bundle, device) for device in DEVICES]), rtol=1e-4)


def test_the_explanation_of_a_run_shows_both_logits(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "request.json").write_text(json.dumps(request_of("phone")))
    assert explain([str(run), str(tmp_path / "request.json"), "--out", str(tmp_path / "why")]) == 0
    assert "logit after calibration" in capsys.readouterr().out
    for explanation in json.loads((tmp_path / "why" / "explanations.json").read_text()):
        assert explanation["ctr"] == pytest.approx(expected_ctr(explanation["logit"], DATA.negative_rate, "phone"))
        assert explanation["ctr"] == pytest.approx(1 / (1 + np.exp(-explanation["calibrated_logit"])), rel=1e-12)


def test_the_golden_requests_cover_the_segments(bundle: Bundle) -> None:
    golden = read_golden(bundle.folder / GOLDEN)
    column = [field.name for field in bundle.schema.select("categorical", "context")].index(FIELD)
    ids = {int(read.context_ids[0, column]) for read in golden_inputs(bundle.schema, bundle.vocabularies, golden)}
    assert bundle.calibrator.fitted is not None
    assert ids >= {segment.id for segment in bundle.calibrator.fitted.segments}


def test_the_load_test_can_shift_a_calibrated_bundle(folder: Path, tmp_path: Path) -> None:
    second = shifted(folder, tmp_path / "second")
    assert verify.main([str(second)]) == 0
    higher, original = (read_golden(path / GOLDEN)[0].ctr[0] for path in (second, folder))
    assert np.log(higher / (1 - higher)) - np.log(original / (1 - original)) == pytest.approx(SHIFT)


def test_a_calibration_of_another_run_is_not_exported(
    run_folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run_folder, tmp_path / "run"))
    shutil.copy(run / CALIBRATION, other / CALIBRATION)
    assert export_command([str(other), str(tmp_path / "bundle"), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{other / CALIBRATION} was fitted for a model whose weights have the digest" in error
    assert "Remove the file. To calibrate this run, run ctr-calibrate again." in error
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(ValueError, match="was fitted for a model"):
        open_scorer(other)


@pytest.mark.parametrize("kind", ["broken link", "pipe", "folder"])
def test_a_calibration_that_is_not_a_file_is_not_ignored(
    kind: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise, the bundle would have other probabilities, and a pipe would block the exporter."""
    other = Path(shutil.copytree(run_folder, tmp_path / "run"))
    path = other / CALIBRATION
    if kind == "broken link":
        path.symlink_to(tmp_path / "not-mounted")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert export_command([str(other), str(tmp_path / "bundle"), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "Remove the file." in error
    assert not (tmp_path / "bundle").exists()


def test_a_run_that_is_trained_again_loses_its_calibration(run: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run, tmp_path / "run"))
    model, experiment, schema, metrics = open_run(run)
    save_run(again, experiment, model, schema, run / "vocabulary", metrics)
    assert not (again / CALIBRATION).exists()


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a number too large for float64": (lambda raw: raw.replace(b"-4.0", b"-1e999"), "out of range"),
    "a number whose differences overflow": (lambda raw: raw.replace(b"-4.0", b"-1e308"), "a knot at -1e"),
    "knots that do not ascend": (lambda raw: raw.replace(b"-2.0", b"-5.0"), "do not ascend"),
    "a field of the candidates": (lambda raw: raw.replace(b'"device"', b'"format"'), '"format" is not a categorical'),
    "an unknown key": (lambda raw: raw.replace(b'"rows"', b'"row_count"', 1), "unknown field `row_count`"),
    "10 MB": (lambda raw: raw + b" " * 10**7, "is larger than 4,194,304 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_calibration_is_refused_by_the_exporter_and_the_server(
    folder: Path, run: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = DAMAGES[damage]
    damaged_run = Path(shutil.copytree(run, tmp_path / "run"))
    damaged_bundle = Path(shutil.copytree(folder, tmp_path / "damaged"))
    for copy in (damaged_run, damaged_bundle):
        (copy / CALIBRATION).write_bytes(change((copy / CALIBRATION).read_bytes()))
    assert export_command([str(damaged_run), str(tmp_path / "bundle"), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert CALIBRATION in error
    assert "Remove the file. To calibrate this run, run ctr-calibrate again." in error
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(BundleError, match=r"calibration\.json was changed after the export"):
        open_bundle(damaged_bundle)
    # A manifest that matches the damaged file does not help.
    write_manifest(damaged_bundle, "small", 1, {}, open_bundle(folder).manifest.calibration)
    assert verify.main([str(damaged_bundle)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert CALIBRATION in error
    assert "export it again" in error


def test_a_steep_calibration_is_exported_and_verified(run: Path, tmp_path: Path) -> None:
    """Between these knots, the slope is 50."""
    knots = ((-4.0, -4.0), (-1.0, -2.0), (-0.98, -1.0), (2.0, 1.0))
    steep = Path(shutil.copytree(run, tmp_path / "run"))
    (steep / CALIBRATION).write_bytes(encode_fitted(fitted_for(run, knots=knots, segments=())))
    export(steep, tmp_path / "bundle")
    assert verify.main([str(tmp_path / "bundle")]) == 0


def test_a_segment_of_an_id_that_the_vocabulary_does_not_have_is_never_used(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    fitted = open_bundle(folder).calibrator.fitted
    assert fitted is not None
    more = msgspec.structs.replace(fitted, segments=(*fitted.segments, SegmentShift(10**9, "x", 9.0, 1, 1)))
    (copy / CALIBRATION).write_bytes(encode_fitted(more))
    write_manifest(copy, "small", 1, {}, open_bundle(folder).manifest.calibration)
    assert verify.main([str(copy)]) == 0
