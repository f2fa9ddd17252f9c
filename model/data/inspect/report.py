"""The table that ctr-inspect prints."""

from rich.markup import escape
from rich.table import Table

from model.data.inspect.experiment import UNSURE, comment
from model.data.inspect.guess import Guess, Guesses
from model.data.inspect.sample import Sample
from model.data.value_warnings import quoted, rows_in

MAX_SHOWN = 24  # characters of a value


def table(sample: Sample, found: Guesses, total: int | None) -> Table:
    """Return a table with a row for each column.

    Args:
        sample: The sample.
        found: The guesses.
        total: The number of rows of the log, or None if it is not known.
    """
    rows = f"a sample of {len(sample.rows):,} rows" if total is None else f"{len(sample.rows):,} of {total:,} rows"
    files = "1 file" if len(sample.sources) == 1 else f"{len(sample.sources):,} files"
    caption = f"{rows_in(len(sample.rows)) if sample.is_complete else rows} in {files}"
    lines = Table("column", "type", "values", "missing", "most frequent", "guess", "check", caption=caption)
    for each in found.columns.values():
        column = each.column
        markers = {**column.markers, **({} if column.numbers is None else column.possible)}
        listed = f" {', '.join(map(quoted, markers))}" if markers else ""
        lines.add_row(
            escape(column.name),
            column.type,
            f"{column.distinct:,}",
            escape(f"{column.missing:.1%}{comment(listed)}"),
            escape(shorten(column.top)),
            guess_of(each),
            escape(comment(doubts(each, found))),
        )
    return lines


def guess_of(each: Guess) -> str:
    """Return the guessed meaning of a column."""
    if each.role != "field":
        return each.role if each.role != "unused" else "not used"
    return f"{each.side}, {each.kind}"


def doubts(each: Guess, found: Guesses) -> str:
    """Return what to check about a column, or why it is not used."""
    column = each.column
    if each.role == "label":
        return found.label_unsure
    parts = [each.note, each.unsure and f"{UNSURE.lower()}: {each.unsure}"]
    if each.kind == "numeric":
        parts += [f"{value} in {share:.2%} of the rows may mean missing" for value, share in column.sentinels.items()]
    if column.possible and column.numbers is None:
        parts.append(f"may mean missing: {', '.join(map(quoted, column.possible))}")
    return "; ".join(filter(None, parts))


def shorten(text: str) -> str:
    """Shorten a value for the table."""
    plain = comment(text)
    return plain if len(plain) <= MAX_SHOWN else f"{plain[: MAX_SHOWN - 3]}..."
