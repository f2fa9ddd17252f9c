"""Targets of a load test, and the report that shows which targets were met."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.report import Table, write_report

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("onnxruntime", "uvicorn", "uvloop", "msgspec", "redis", "numpy")


@dataclass(frozen=True)
class Target:
    """A measured value and the bound that it must meet, both as text with units."""

    name: str
    measured: str
    bound: str
    passed: bool


def report(
    question: str, title: str, text: str, targets: Sequence[Target], tables: Sequence[Table], command: str
) -> int:
    """Write results/<question>.md, whether or not the targets pass. Return the exit code: 1 if a target fails."""
    rows = [(target.name, target.measured, target.bound, "pass" if target.passed else "**fail**") for target in targets]
    first = Table("Targets", ("", "measured", "target", ""), rows)
    write_report(RESULTS / f"{question}.md", title, text, [first, *tables], LIBRARIES, command)
    return 0 if all(target.passed for target in targets) else 1
