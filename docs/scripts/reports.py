"""Read the Markdown tables of committed reports."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RULE = re.compile(r"\|(\s*:?-+:?\s*\|)+")


@dataclass(frozen=True)
class Table:
    """A Markdown table.

    Attributes:
        title: The text of the heading above the table. Empty if there is none.
        header: The cells of the first row.
        rows: The cells of the rows below the rule.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> int:
        """Return the index of a column.

        Raises:
            ValueError: If there is no column with this name.
        """
        if name not in self.header:
            raise ValueError(f"table {self.title!r} has no column {name!r}, only {', '.join(self.header)}")
        return self.header.index(name)

    def cell(self, row: str, column: str) -> str:
        """Return the cell in the row whose first cell is `row`.

        Raises:
            ValueError: There is no such row or column.
        """
        position = self.column(column)
        for cells in self.rows:
            if cells[0] == row:
                return cells[position]
        raise ValueError(f"table {self.title!r} has no row {row!r}")


def read_report(path: str) -> list[Table]:
    """Return the tables in a report. `path` is relative to the repository root."""
    return list(tables_in((ROOT / path).read_text()))


def tables_in(markdown: str) -> Iterator[Table]:
    """Yield the tables in a Markdown document from top to bottom."""
    title = ""
    lines = markdown.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("#"):
            title = line.lstrip("#").strip()
        if RULE.fullmatch(line.strip()) and number and lines[number - 1].startswith("|"):
            rows = []
            for row in lines[number + 1 :]:
                if not row.startswith("|"):
                    break
                rows.append(cells_of(row))
            yield Table(title, cells_of(lines[number - 1]), tuple(rows))


def cells_of(line: str) -> tuple[str, ...]:
    """Return the cells in a row of a table."""
    return tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1])


def find_row(path: str, pattern: str) -> tuple[str, ...]:
    """Return the only row in a report whose first cell matches a regular expression.

    Raises:
        ValueError: If no row or more than one row matches.
    """
    rows = [row for table in read_report(path) for row in table.rows if re.search(pattern, row[0])]
    if len(rows) != 1:
        raise ValueError(f"{path}: the first cell of {len(rows)} rows matches {pattern!r}; expected one row")
    return rows[0]


def find_table(path: str, pattern: str) -> Table:
    """Return the first table in a report whose title matches a regular expression.

    Raises:
        ValueError: No title matches.
    """
    for table in read_report(path):
        if re.search(pattern, table.title):
            return table
    raise ValueError(f"{path}: no table under a heading that matches {pattern!r}")
