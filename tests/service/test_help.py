"""The commands print --help without importing libraries that are slow to import."""

import subprocess
import sys

import pytest

IMPORTED = """
import contextlib, runpy, sys
module, *libraries = sys.argv[1:]
sys.argv = [module, "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module(module, run_name="__main__")
print("imported:", *(library for library in libraries if library in sys.modules))
"""


@pytest.mark.parametrize(
    ("module", "libraries"),
    [
        ("service", ["fastapi", "numpy", "onnxruntime", "redis", "uvicorn"]),
        ("service.collect", ["fastapi", "numpy", "onnxruntime", "redis", "uvicorn", "prometheus_client"]),
        ("service.models.store", ["fastapi", "onnxruntime", "pydantic", "redis"]),
        ("service.models.verify", ["fastapi", "onnxruntime", "pydantic", "redis", "starlette"]),
        ("service.vocabulary.publish", ["fastapi", "onnxruntime", "pydantic", "redis"]),
    ],
)
def test_help_does_not_import_slow_libraries(module: str, libraries: list[str]) -> None:
    command = [sys.executable, "-c", IMPORTED, module, *libraries]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    usage, _, imported = result.stdout.partition("imported:")
    assert usage.startswith("usage: ctr-")
    assert imported.split() == []
