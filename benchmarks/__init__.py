"""Benchmarks: one module for each question, which writes its answer to results/<question>.md."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
