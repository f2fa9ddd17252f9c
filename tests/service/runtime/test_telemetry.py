"""onnxruntime sends no usage data: it writes neither an event database nor a machine id to the user's cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SESSION = "onnxruntime.InferenceSession('deploy/demo/model.onnx')"


@pytest.mark.parametrize(
    "imports",
    [
        "from service.runtime.onnx_session import import_onnxruntime; onnxruntime = import_onnxruntime()",
        "import export.parity; import onnxruntime",
    ],
    ids=["service", "export"],
)
def test_nothing_is_written_to_the_cache(tmp_path: Path, imports: str) -> None:
    unset = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    subprocess.run(
        [sys.executable, "-c", f"{imports}; {SESSION}"],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert list(tmp_path.rglob("*")) == []
