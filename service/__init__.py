"""The scoring service. It does not import any training library."""

import os

# The official builds of onnxruntime send usage data to Microsoft. They read this variable when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
