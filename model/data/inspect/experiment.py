"""Writing a first experiment for a log, with a comment beside each guess."""

import re
from collections.abc import Iterator, Sequence

from contract.schema import NAME, Side
from model.data.inspect.columns import Column
from model.data.inspect.guess import Guess, Guesses, click_labels
from model.data.inspect.layout import Layout, Period, duration, time_fields
from model.data.inspect.sample import QUOTE, Sample, ending
from model.data.readers.scan import DELIMITERS
from model.data.value_warnings import quoted, rows_in

SMALL_LOG = 100_000  # rows; the default recipe suits larger logs
SMALL_BATCH = 256
SMALL_EMBEDDING_L2 = 0.3
NET_L2_CLICKS = 10.0  # net_l2 is this number divided by the clicks (docs/tuning.md)
TRAIN_SHARE = 0.8
UNSURE = "UNSURE"


def write_experiment(
    name: str, sample: Sample, found: Guesses, layout: Layout, period: Period | None, total: int | None
) -> str:
    """Return the text of a TOML file that ctr-prepare and ctr-train read.

    Args:
        name: The name of the experiment.
        sample: The sample that the guesses are based on.
        found: The guesses.
        layout: The log's files.
        period: The period of the log, if it has a time.
        total: The number of rows of the log, or None if it is not known.

    Raises:
        ValueError: If no label was found, or a side has no categorical field.
    """
    check_complete(found, sample)
    names = new_names(found)
    lines = [
        f"# Written by ctr-inspect from {len(sample.rows):,} rows. Check the guesses, above all those marked {UNSURE}.",
        f"name = {quoted(name)}",
        "",
        "[data]",
        'reader = "table"',
        f"folder = {quoted(layout.folder)}  # relative to --data",
        f"prepared = {quoted(f'prepared/{name}')}",
        *file_lines(layout, found, names, period),
        *format_lines(sample, found, names),
        *label_lines(found, names),
        *role_lines(found, names),
        *side_lines("context", found, names),
        *side_lines("candidate", found, names),
        *numeric_lines(found, names),
        *unused_lines(found),
        *field_lines(found, names, layout, period),
        *training_lines(found, total),
    ]
    return "\n".join(lines) + "\n"


def check_complete(found: Guesses, sample: Sample) -> None:
    """Check that an experiment can be written.

    Raises:
        ValueError: If no label was found, or a side has no categorical field.
    """
    if not found.label:
        columns = ", ".join(found.columns)
        raise ValueError(
            f"{sample.paths[0]}: no label: no column contains 0 and 1, or values such as click and no click. The "
            f"columns are {columns}. Add a label to the log, or call its column click."
        )
    for side in ("context", "candidate"):
        if not any(each.kind == "categorical" for each in found.fields(side)):
            raise ValueError(
                f"{sample.paths[0]}: no categorical column for the {side} side is left. A model needs one on each "
                "side: one of the user or the page, and one of the ad. Add one to the log."
            )


def new_names(found: Guesses) -> dict[str, str]:
    """Return the name of each used column in the experiment. It differs from the file's name if that is not valid."""
    names: dict[str, str] = {}
    for name, each in found.columns.items():
        if NAME.fullmatch(name) or each.role == "unused":
            names[name] = name
            continue
        valid = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip("-._")[:60] or "column"
        while valid in found.columns or valid in names.values():
            valid += "_"
        names[name] = valid
    return names


def file_lines(layout: Layout, found: Guesses, names: dict[str, str], period: Period | None) -> Iterator[str]:
    """Yield the files and how they are split."""
    if layout.splits:
        yield from (f"{split} = {quoted(path)}" for split, path in layout.splits.items())
        return
    yield f"files = [{', '.join(map(quoted, layout.files))}]"
    length = duration(period) if period is not None else None
    if length is not None and period is not None:
        yield f"time = {quoted(names[found.time])}"
        yield (
            f'split = {{ by = "time", valid = "{length}", test = "{length}" }}  # the log spans {days(period.span)}; '
            "the newest rows are test"
        )
        return
    yield 'split = { by = "random", valid = 0.1, test = 0.1, seed = 1 }  # by time is better, if rows have a time'
    if found.unit:
        yield f"# add unit = {quoted(names[found.unit])} to split to keep the rows of one {found.unit} together"


def days(span: float) -> str:
    """Return a length of time in days, or in hours if it is short."""
    return f"{span / 86400:.1f} days" if span >= 2 * 86400 else f"{span / 3600:.1f} hours"


def format_lines(sample: Sample, found: Guesses, names: dict[str, str]) -> Iterator[str]:
    """Yield the format of text files, renamed columns and the markers for missing values."""
    text = sample.text
    if text is not None:
        usual = DELIMITERS[ending(sample.paths[0])]
        if text.delimiter != usual:
            yield f"delimiter = {quoted(text.delimiter)}"
        if text.quote != (QUOTE if usual == "," else ""):
            yield f"quote = {quoted(text.quote)}"
        if not text.has_header:
            yield f"columns = [{', '.join(map(quoted, text.columns))}]  # {UNSURE}: the first line looks like a row"
    if renamed := {old: new for old, new in names.items() if old != new}:
        pairs = ", ".join(f"{quoted(old)} = {quoted(new)}" for old, new in renamed.items())
        yield f"rename = {{ {pairs} }}"
    markers: dict[str, str] = {}
    for each in found.columns.values():
        if each.role in ("field", "label", "time"):
            markers |= {marker: each.column.name for marker in each.column.markers if marker not in markers}
    if markers:
        where = ", ".join(dict.fromkeys(markers.values()))
        yield f"missing = [{', '.join(map(quoted, markers))}]  # found in {comment(where)}"


def label_lines(found: Guesses, names: dict[str, str]) -> Iterator[str]:
    """Yield the label and the values that are clicks."""
    unsure = f"  # {UNSURE}: {comment(found.label_unsure)}" if found.label_unsure else ""
    yield f"label = {quoted(names[found.label])}{unsure}"
    if found.positive:
        values = sorted(found.columns[found.label].column.values - {*found.positive})
        yield f"positive = [{', '.join(map(quoted, found.positive))}]  # not a click: {comment(', '.join(values))}"


def role_lines(found: Guesses, names: dict[str, str]) -> Iterator[str]:
    """Yield, as comments, the columns that may be used for more than fields."""
    if found.request:
        yield f"# request = {quoted(names[found.request])}  # the request that showed a row: for metrics of the best k"
    if found.unit:
        yield f"# unit = {quoted(names[found.unit])}  # metrics and intervals are grouped by it"
    if found.weight:
        yield f"# weight = {quoted(names[found.weight])}  # the weight of a row in the training loss"


def side_lines(side: Side, found: Guesses, names: dict[str, str]) -> Iterator[str]:
    """Yield the fields of a side, one on each line."""
    meaning = {"context": "the user, the page and the time", "candidate": "the ad"}[side]
    yield f"{side} = [  # {meaning}"
    for each in found.fields(side):
        yield f"    {quoted(names[each.column.name])},  # {remark(each)}"
    yield "]"


def numeric_lines(found: Guesses, names: dict[str, str]) -> Iterator[str]:
    """Yield the fields that are numbers."""
    numeric = [each for each in found.columns.values() if each.role == "field" and each.kind == "numeric"]
    if numeric:
        yield f"numeric = [{', '.join(quoted(names[each.column.name]) for each in numeric)}]"


def unused_lines(found: Guesses) -> Iterator[str]:
    """Yield, as comments, the columns that are not used, and why."""
    for each in found.columns.values():
        if each.role == "unused":
            yield f"# not used: {comment(quoted(each.column.name))}: {comment(each.note)}"


def field_lines(found: Guesses, names: dict[str, str], layout: Layout, period: Period | None) -> Iterator[str]:
    """Yield the fields derived from the time, and the settings of single fields."""
    if period is not None:
        for part in time_fields(period, not layout.splits and duration(period) is not None):
            name = part if part not in names.values() else f"{names[found.time]}_{part}"
            if part in found.columns or name in names.values():
                continue
            yield from ("", "[[data.fields]]", f"name = {quoted(name)}")
            yield f"from = {quoted(names[found.time])}"
            yield from (
                'side = "context"',
                f'transform = "{part}"',
                '# timezone = "Europe/Istanbul"  # the default is UTC',
            )
    for each in found.columns.values():
        if each.role == "field" and (markers := number_markers(each.column)):
            listed = ", ".join(map(quoted, markers))
            yield from ("", "[[data.fields]]", f"name = {quoted(names[each.column.name])}")
            rows = f"  # {UNSURE}: {rows_in(each.column.sentinel[1])}" if each.column.sentinel else ""
            yield f"missing = [{listed}]{rows}"


def training_lines(found: Guesses, total: int | None) -> Iterator[str]:
    """Yield a recipe for a small log. Without the penalties, a model of few clicks is worse than the base rate."""
    if not total or total >= SMALL_LOG:
        return
    clicks = float(click_labels(found.columns[found.label].column, found.positive).mean()) * total * TRAIN_SHARE
    net_l2 = NET_L2_CLICKS / max(1.0, min(clicks, total * TRAIN_SHARE - clicks))
    yield from ("", "[training]  # for a small log; ctr-train --auto finds better values")
    yield f"batch_size = {SMALL_BATCH}"
    yield f"embedding_l2 = {SMALL_EMBEDDING_L2}"
    yield f"net_l2 = {net_l2:.1g}  # about {NET_L2_CLICKS:g} divided by the number of clicks"


def number_markers(column: Column) -> Sequence[str]:
    """Return the values of a column of numbers that stand for a missing one."""
    if column.numbers is None:
        return ()
    markers = [*column.possible]
    if column.sentinel is not None:
        markers += column.text.filter(column.numbers == column.sentinel[0]).head(1).to_list()
    return markers


def remark(each: Guess) -> str:
    """Return the comment beside a field."""
    column = each.column
    if each.kind == "numeric" and column.numbers is not None:
        usual = column.numbers.drop_nulls()
        if column.sentinel is not None:
            usual = usual.filter(usual != column.sentinel[0])
        numbers = usual.to_numpy()
        shown = f"{numbers.min():g} to {numbers.max():g}"
    else:
        shown = f"{column.distinct:,} values, such as {comment(column.top)}"
    missing = f", {column.missing:.1%} missing" if column.missing else ""
    return f"{shown}{missing}" + (f"; {UNSURE}: {comment(each.unsure)}" if each.unsure else "")


def comment(text: str) -> str:
    """Return text for a comment: one line, shortened, without control characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= 80 else f"{plain[:80]}..."
