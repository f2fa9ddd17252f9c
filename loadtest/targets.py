"""What a load test promises: a figure, its bar, and whether it is kept. A missed one is the script's exit code."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.report import Table, write_report

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("onnxruntime", "uvicorn", "uvloop", "msgspec", "redis", "numpy")


@dataclass(frozen=True)
class Bar:
    name: str
    figure: str
    bar: str
    kept: bool


def report(question: str, title: str, text: str, bars: Sequence[Bar], tables: Sequence[Table], command: str) -> int:
    """Writes results/<question>.md, whatever came out. The exit code: 1 when a bar is missed."""
    rows = [(bar.name, bar.figure, bar.bar, "kept" if bar.kept else "**missed**") for bar in bars]
    first = Table("Bars", ("", "measured", "bar", ""), rows)
    write_report(RESULTS / f"{question}.md", title, text, [first, *tables], LIBRARIES, command)
    return 0 if all(bar.kept for bar in bars) else 1
