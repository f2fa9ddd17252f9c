"""Benchmarks. Each module answers one question and writes its report to results/<question>.md."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
