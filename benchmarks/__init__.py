"""Benchmarks. Each module answers one question and writes its report to results/<question>.md."""

import os
from pathlib import Path

# The official builds of onnxruntime send usage data to Microsoft. They read this variable when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

RESULTS = Path(__file__).parent / "results"
