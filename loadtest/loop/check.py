"""Compare a joined log with what the simulation knows."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import polars as pl

from contract.segments import finished_files
from model.data.synthetic.traffic_truth import KEY

MAX_DIFFERENCES = 5


def read_lines(folder: Path) -> Iterator[bytes]:
    """Yield the lines of all finished segments in a folder."""
    for path in finished_files(folder):
        yield from path.read_bytes().splitlines()


def read_joined(joined: Path, columns: list[str]) -> pl.DataFrame:
    """Return columns of all hours of a joined log, sorted by score_id and candidate."""
    hours = [pl.read_parquet(path) for path in sorted((joined / "hours").glob("*.parquet"))]
    if not hours:
        raise ValueError(f"{joined}/hours has no files: no hour is final")
    return pl.concat(hours, how="diagonal").select(columns).sort(KEY)


def read_balance(joined: Path) -> dict[str, dict[str, int]]:
    """Return the balance in join.json, without categories that have no events."""
    report = msgspec.json.decode((joined / "join.json").read_bytes())
    return {
        name: {category: number for category, number in counts.items() if number and category != "total"}
        for name, counts in report["balance"].items()
        if counts["total"]
    }


def row_differences(expected: pl.DataFrame, found: pl.DataFrame) -> list[str]:
    """Return descriptions of the first rows that differ, or [] if all are equal.

    Args:
        expected: The rows of the simulation, sorted by score_id and candidate.
        found: The rows of the joined log with the same columns, in the same order.
    """
    if expected.schema != found.schema:
        return [f"the columns are {dict(found.schema)} instead of {dict(expected.schema)}"]
    if expected.equals(found):
        return []
    lines = [f"the joined log has {len(found):,} rows, and the simulation {len(expected):,}"]
    for what, left, right in (("missing", expected, found), ("unexpected", found, expected)):
        rows = left.join(right, KEY, "anti").head(MAX_DIFFERENCES)
        lines += [f"{what}: {row}" for row in rows.iter_rows(named=True)]
    both = expected.join(found, KEY, "inner", suffix="_found", maintain_order="left")
    for row in both.iter_rows(named=True):
        wrong = [name for name in expected.columns if name not in KEY and row[name] != row[f"{name}_found"]]
        if wrong and len(lines) < 4 * MAX_DIFFERENCES:
            key = ", ".join(f"{name} {row[name]}" for name in KEY)
            values = "; ".join(f"{name} is {row[f'{name}_found']!r}, expected {row[name]!r}" for name in wrong)
            lines.append(f"{key}: {values}")
    return lines


def balance_differences(expected: Mapping[str, Mapping[str, int]], found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the categories whose numbers differ."""
    lines = []
    for name in sorted({*expected, *found}):
        for category in sorted({*expected.get(name, {}), *found.get(name, {})}):
            wanted, number = expected.get(name, {}).get(category, 0), found.get(name, {}).get(category, 0)
            if wanted != number:
                lines.append(f"{name}, {category}: {number:,} in join.json, expected {wanted:,}")
    return lines
