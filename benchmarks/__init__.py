"""One module per question; each writes results/<question>.md."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
