"""Exporting a trained run to a bundle that the service can open."""

import os

# The official builds of onnxruntime send usage data to Microsoft. They read this variable when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
