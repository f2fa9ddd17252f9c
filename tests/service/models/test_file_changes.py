"""A model whose answer is not finite: its bundle's files are checked only if they were written to."""

import asyncio
import shutil
from pathlib import Path

import pytest

from contract.bundle import open_bundle
from service.errors import NotFinite
from tests.support.app import StartApp, a_request, app_of
from tests.support.processes import TIMEOUT_S
from tests.support.small_bundle import write_small_bundle


async def test_files_that_were_only_touched_do_not_stop_the_server(
    start: StartApp, own_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(bundle=own_bundle) as client:
        model = app_of(client).state.serving.model
        (own_bundle / "model.onnx").touch()
        with pytest.raises(NotFinite), model.in_use():
            raise NotFinite("The model's answer is not a finite number.")
        refused = await client.post("/v1/score", json=a_request())
        assert refused.status_code == 503
        assert "model.onnx" in refused.json()["detail"]
        async with asyncio.timeout(TIMEOUT_S):
            while model.readiness.problem is not None:
                await asyncio.sleep(0.01)
        assert (await client.post("/v1/score", json=a_request())).status_code == 200
        assert not model.damaged.is_set()
        with pytest.raises(NotFinite), model.in_use():
            raise NotFinite("The model's answer is not a finite number.")
        assert model.readiness.problem is None  # No file has changed since.
    assert "model.onnx were written to, but have not changed" in caplog.text


async def test_files_with_other_contents_mark_the_model_as_damaged(
    start: StartApp, own_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with start(bundle=own_bundle) as client:
        model = app_of(client).state.serving.model
        with (own_bundle / "golden.jsonl").open("r+b") as file:
            file.write(b"damaged")
        for _ in range(3):
            with pytest.raises(NotFinite), model.in_use():
                raise NotFinite("The model's answer is not a finite number.")
        await asyncio.wait_for(model.damaged.wait(), TIMEOUT_S)
        with pytest.raises(NotFinite), model.in_use():
            raise NotFinite("The model's answer is not a finite number.")
        refused = await client.get("/readyz")
        assert refused.status_code == 503
        assert "golden.jsonl. Restore them." in refused.json()["detail"]
    assert caplog.text.count("golden.jsonl was changed after the export") == 1


async def test_another_version_that_was_copied_over_the_files_marks_the_model_as_damaged(
    start: StartApp, own_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files match its own manifest, but the server has mapped and read some of the earlier ones."""
    other = write_small_bundle(tmp_path / "other", seed=2)
    async with start(bundle=own_bundle) as client:
        model = app_of(client).state.serving.model
        shutil.copytree(other, own_bundle, dirs_exist_ok=True)
        with pytest.raises(NotFinite), model.in_use():
            raise NotFinite("The model's answer is not a finite number.")
        await asyncio.wait_for(model.damaged.wait(), TIMEOUT_S)
        assert (await client.post("/v1/score", json=a_request())).status_code == 503
    assert f"now contains the version {open_bundle(other).manifest.version}" in caplog.text
