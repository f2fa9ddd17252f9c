"""Write the report of a benchmark or load test: tables, command, versions and machine."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from model.atomic_folder import write_whole
from model.training.device import cpu_name


@dataclass(frozen=True)
class Table:
    """A Markdown table. If `title` is empty, the table has no heading."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> list[str]:
        heading = [f"## {self.title}", ""] if self.title else []
        rows = ("| " + " | ".join(cells) + " |" for cells in (self.header, ["--:"] * len(self.header), *self.rows))
        return [*heading, *rows, ""]


def write_report(
    path: Path | None, title: str, text: str, tables: Sequence[Table], libraries: Sequence[str], command: str
) -> None:
    """Print a Markdown report, and write it to `path` atomically.

    Args:
        path: The report's file. Its folder is created if needed. If it is None, the report is only printed.
        title: The heading.
        text: The paragraph below the heading: what was measured, and how.
        tables: The results.
        libraries: Distributions whose versions are listed in the report.
        command: The shell command that reproduces the report.
    """
    lines = [f"# {title}", "", text, "", *(line for table in tables for line in table.lines())]
    used = ", ".join(f"{name} {version(name)}" for name in libraries)
    lines += [
        f"Command: `{command}`, {datetime.now(UTC):%Y-%m-%d}.",
        f"Versions: Python {platform.python_version()}, {used}.",
        f"Machine: {cpu_name()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}.",
        "",
    ]
    report = "\n".join(lines)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, report.encode())
    Console().print(Markdown(report))
