"""A benchmark's result as a file: its table, the command, the versions and the machine."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from model.folder import write_whole
from model.machine import cpu_name

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Table:
    """title: none where the report has one table."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> list[str]:
        heading = [f"## {self.title}", ""] if self.title else []
        return [*heading, _line(self.header), _line(["--:"] * len(self.header)), *map(_line, self.rows), ""]


def write_report(
    question: str,
    title: str,
    text: str,
    tables: Sequence[Table],
    libraries: Sequence[str],
    command: str | None = None,
    results: Path = RESULTS,
) -> None:
    """Writes <results>/<question>.md and prints it. command: None is that of a benchmark."""
    lines = [f"# {title}", "", text, "", *(line for table in tables for line in table.lines())]
    used = ", ".join(f"{name} {version(name)}" for name in libraries)
    command = command or f"python -m benchmarks.{question.replace('-', '_')}"
    lines += [
        f"Command: `{command}`, {datetime.now(UTC):%Y-%m-%d}.",
        f"Versions: Python {platform.python_version()}, {used}.",
        f"Machine: {cpu_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}.",
        "",
    ]
    report = "\n".join(lines)
    results.mkdir(exist_ok=True)
    write_whole(results / f"{question}.md", report.encode())
    Console().print(Markdown(report))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
