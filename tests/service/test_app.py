"""Startup, readiness, and bundles that must not be served."""

import asyncio
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import kernel
from contract.bundle import BundleError, open_bundle
from contract.golden import TOLERANCE
from service.app import create_app
from service.settings import Settings, SettingsError
from tests.support.app import StartApp, a_request, app_of, client_of
from tests.support.paths import DEMO
from tests.support.small_bundle import write_small_bundle


async def test_a_ready_server_reports_its_version(start: StartApp, bundle: Path) -> None:
    served = open_bundle(bundle).manifest.version
    async with start() as client:
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert served in ready.text
        model = (await client.get("/v1/model")).json()
        assert model["version"] == served
        assert model["metrics"] == {"auc": 0.75}
        assert {"name": "price", "side": "candidate", "kind": "numeric"} in model["fields"]
        assert "kernel_lanes" not in model  # The small bundle has no kernel.onnx.
        assert f'ctr_model_info{{model="small",version="{served}"}} 1.0' in (await client.get("/metrics")).text


@pytest.mark.skipif(not kernel.is_usable(), reason="the kernel is not usable here; is a C++20 compiler missing?")
async def test_the_kernels_lanes_are_in_the_response_and_in_the_log(
    start: StartApp, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with start(bundle=DEMO) as client:
        model = (await client.get("/v1/model")).json()
    assert (model["graph"], model["kernel_lanes"]) == ("kernel.onnx", kernel.lanes())
    assert f"kernel.onnx with {kernel.lanes()} lanes on cpu" in caplog.text


async def test_nothing_is_scored_before_the_self_test_has_finished(bundle: Path) -> None:
    app = create_app(Settings(bundle=bundle))
    async with app.router.lifespan_context(app), client_of(app) as client:
        # The self-test runs in a thread, and the event loop has not yet been notified of its end.
        assert (await client.get("/livez")).status_code == 200
        ready, score = await asyncio.gather(client.get("/readyz"), client.post("/v1/score", json=a_request()))
    assert {ready.status_code, score.status_code} <= {200, 503}


async def test_a_model_that_does_not_reproduce_its_golden_requests_is_never_ready(
    start: StartApp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(bundle=write_small_bundle(tmp_path / "wrong", golden_shift=100 * TOLERANCE)) as client:
        for answer in (await client.get("/readyz"), await client.post("/v1/score", json=a_request())):
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert "golden requests differ" in answer.json()["detail"]
        assert (await client.get("/livez")).status_code == 200
    assert [record.levelname for record in caplog.records if "golden requests" in record.message] == ["ERROR"]


async def test_a_strict_server_passes_its_self_test_even_if_golden_requests_have_missing_values(
    start: StartApp,
) -> None:
    async with start(strict=True) as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_settings_come_from_the_environment_when_none_are_given(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="CTR_BUNDLE"):
        create_app()
    monkeypatch.setenv("CTR_BUNDLE", str(bundle))
    app = create_app()
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.get("/livez")).status_code == 200


async def test_the_same_app_can_be_started_again(start: StartApp, bundle: Path) -> None:
    app = create_app(Settings(bundle=bundle, timeout_ms=5000))
    for _ in range(2):
        async with app.router.lifespan_context(app), client_of(app) as client:
            await app.state.serving.model.scorer.readiness.tested.wait()
            assert (await client.post("/v1/score", json=a_request())).status_code == 200


async def test_the_openapi_document_has_the_version_of_the_distribution(start: StartApp) -> None:
    async with start() as client:
        assert (await client.get("/openapi.json")).json()["info"]["version"] == version("stec-ctr")


@pytest.mark.parametrize("admin_port", [None, 1])
async def test_the_openapi_document_lists_metrics_only_on_the_port_that_serves_it(
    start: StartApp, admin_port: int | None
) -> None:
    async with start(admin_port=admin_port) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert ("/metrics" in paths) == ((await client.get("/metrics")).status_code == 200) == (admin_port is None)


async def test_a_trailing_slash_is_a_404_and_not_a_redirect(start: StartApp) -> None:
    async with start() as client:
        assert (await client.post("/v1/score/", json=a_request())).status_code == 404


async def test_the_batcher_is_closed_when_the_app_shuts_down(start: StartApp) -> None:
    async with start() as client:
        scorer = app_of(client).state.serving.model.scorer
    assert scorer.batcher._closed


def change_a_byte(folder: Path) -> None:
    path = folder / "model.onnx"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def set_another_format(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 9}))


def replace_by_a_link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def add_an_unlisted_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


def remove_golden(folder: Path) -> None:
    (folder / "golden.jsonl").unlink()


def change_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"scale": 1.0', '"scale": 2.0'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_a_byte, "model.onnx was changed after the export: copy or export the bundle again"),
        (set_another_format, "format version is 9, but this server reads 2, 3, 4 and 5: export the run again"),
        (replace_by_a_link, "model.onnx is a link: replace it with the file itself"),
        (add_an_unlisted_file, "notes.txt is not in manifest.json: remove it"),
        (remove_golden, "golden.jsonl is missing: copy or export"),
        (change_the_manifest, "was changed after the export"),
    ],
)
async def test_a_damaged_bundle_is_not_served(own_bundle: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(own_bundle)
    app = create_app(Settings(bundle=own_bundle))
    with pytest.raises(BundleError, match=message):
        async with app.router.lifespan_context(app):
            pass
