"""The server refuses to start with a uvicorn release that would bypass admission control."""

import os
import tomllib
from pathlib import Path

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.uvicorn_support import HOOK, SUPPORTED, UnsupportedUvicorn, check_uvicorn
from tests.support.paths import ROOT
from tests.support.processes import start


def test_the_installed_uvicorn_is_supported() -> None:
    check_uvicorn()


def test_the_message_names_the_range_that_the_package_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SUPPORTED in project["dependencies"]


def test_uvicorn_without_the_hook_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(HttpToolsProtocol, HOOK)
    with pytest.raises(UnsupportedUvicorn, match=f"has no HttpToolsProtocol.{HOOK}"):
        check_uvicorn()


def test_a_server_with_uvicorn_without_the_hook_exits_with_code_2_and_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"from {HttpToolsProtocol.__module__} import HttpToolsProtocol\ndel HttpToolsProtocol.{HOOK}\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with start(CTR_BUNDLE=str(bundle), PYTHONPATH=path) as process:
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert out == ""
    assert f"Install '{SUPPORTED}'." in errors
    assert len(errors.splitlines()) == 1
