"""Writing a first experiment for a log, with a comment beside each guess."""

import re
from collections.abc import Iterator, Mapping, Sequence

from contract.schema import NAME, Side
from model.data.inspect.guess import Guess, Guesses
from model.data.inspect.layout import Layout, Period, split_length, time_fields
from model.data.inspect.sample import QUOTE, Sample
from model.data.readers.scan import DELIMITERS, text_ending
from model.data.recipe import SMALL_BATCH, SMALL_EMBEDDING_L2, SMALL_LOG, SMALL_NET_L2
from model.data.value_warnings import quoted, rows_in

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
        f"# Written by ctr-inspect from {len(sample.rows):,} rows. Check the guesses, especially any marked {UNSURE}.",
        f"name = {quoted(name)}",
        "",
        "[data]",
        'reader = "table"',
        f"folder = {quoted(layout.folder)}  # relative to --data",
        f"prepared = {quoted(f'prepared/{name}')}",
        *file_lines(layout, found, names, period, sample),
        *format_lines(sample, found, names),
        *label_lines(found, names),
        *role_lines(found, names),
        *side_lines("context", found, names),
        *side_lines("candidate", found, names),
        *numeric_lines(found, names),
        *unused_lines(found),
        *field_lines(found, names, layout, period),
        *training_lines(total),
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
            f"{sample.sources[0].name}: no label was found. No column contains 0 and 1, or values such as click and no "
            f"click. The columns are {columns}. Add a label to the log, or rename its column to click."
        )
    for side in ("context", "candidate"):
        if not any(each.kind == "categorical" for each in found.fields(side)):
            raise ValueError(
                f"{sample.sources[0].name}: no categorical column is left for the {side} side. A model needs at least "
                "one that describes the user or the page, and at least one that describes the ad. Add such a column to "
                "the log."
            )


def new_names(found: Guesses) -> dict[str, str]:
    """Return the name of each column in the experiment. A column is renamed if its name in the file is not valid."""
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


def file_lines(
    layout: Layout, found: Guesses, names: dict[str, str], period: Period | None, sample: Sample
) -> Iterator[str]:
    """Yield the lines for the files and their split."""
    if layout.splits:
        yield from (f"{split} = {quoted(path)}" for split, path in layout.splits.items())
        return
    length = split_length(layout, period)
    if length is None and layout.by_date:
        yield f"# {UNSURE}: split by the dates in the names; the last date is test, the date before it valid"
        for split, patterns in layout.by_date.items():
            listed = ", ".join(map(quoted, patterns))
            yield f"{split} = {listed if len(patterns) == 1 else f'[{listed}]'}"
        return
    yield f"files = [{', '.join(map(quoted, layout.files))}]"
    if length is not None and period is not None:
        yield f"time = {quoted(names[found.time])}"
        yield (
            f'split = {{ by = "time", valid = "{length}", test = "{length}" }}  # the log spans {days(period.span)}; '
            "the newest rows are test"
        )
        return
    why = why_not_by_time(found, period, sample)
    yield f'split = {{ by = "random", valid = 0.1, test = 0.1, seed = 1 }}  # {comment(why, 200)}'
    if found.unit:
        yield f"# add unit = {quoted(names[found.unit])} to split to keep the rows of one {found.unit} together"


def why_not_by_time(found: Guesses, period: Period | None, sample: Sample) -> str:
    """Return why a log is split at random."""
    if not found.time:
        return "a split by time is better, if rows have a time"
    if sample.is_head:
        return f"{UNSURE}: a split by time is better, but only the first rows were read, so the period is not known"
    bad = f"{UNSURE}: a split by time is better, but column {quoted(found.time)}"
    if period is None or period.unreadable:
        where = "" if period is None else f" in {rows_in(period.unreadable)}"
        return f"{bad} contains values that are not times{where}"
    if period.missing:
        return f"{bad} is missing in {rows_in(period.missing)}"
    return f"the log spans only {days(period.span)}, which is too short for a split by time"


def days(span: float) -> str:
    """Return a length of time in days, or in hours if it is short."""
    return f"{span / 86400:.1f} days" if span >= 2 * 86400 else f"{span / 3600:.1f} hours"


def format_lines(sample: Sample, found: Guesses, names: dict[str, str]) -> Iterator[str]:
    """Yield the format of text files, renamed columns and the markers for missing values."""
    text = sample.text
    if text is not None:
        usual = DELIMITERS[text_ending(sample.sources[0])]
        if text.delimiter != usual:
            yield f"delimiter = {quoted(text.delimiter)}"
        if text.quote != (QUOTE if usual == "," else ""):
            yield f"quote = {quoted(text.quote)}"
        if text.names:
            yield f"columns = [{', '.join(map(quoted, text.names))}]  # {UNSURE}: the first line looks like a row"
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
    """Yield comments that show how to use columns as the request, the unit and the weight."""
    if found.request:
        yield f"# request = {quoted(names[found.request])}  # the request in which a row was shown, for NDCG@10"
    if found.unit:
        yield f"# unit = {quoted(names[found.unit])}  # metrics and confidence intervals are grouped by this column"
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
    """Yield the list of numeric fields."""
    numeric = [each for each in found.columns.values() if each.role == "field" and each.kind == "numeric"]
    if numeric:
        yield f"numeric = [{', '.join(quoted(names[each.column.name]) for each in numeric)}]"


def unused_lines(found: Guesses) -> Iterator[str]:
    """Yield, as comments, the columns that are not used, and why."""
    for each in found.columns.values():
        if each.role == "unused":
            yield f"# not used: {comment(quoted(each.column.name))}: {comment(each.note)}"


def field_lines(found: Guesses, names: dict[str, str], layout: Layout, period: Period | None) -> Iterator[str]:
    """Yield the fields derived from the time, and the settings of individual fields."""
    if period is not None and not period.unreadable:
        for part in time_fields(period, split_length(layout, period) is not None):
            name = part if part not in names.values() else f"{names[found.time]}_{part}"
            if part in found.columns or name in names.values():
                continue
            yield from ("", "[[data.fields]]", f"name = {quoted(name)}")
            yield f"from = {quoted(names[found.time])}"
            yield from (
                'side = "context"',
                f'transform = "{part}"',
                '# timezone = "Europe/Istanbul"  # your users\' time zone, if the times have an offset or are in UTC',
            )
    for each in found.columns.values():
        if each.role == "field" and (markers := number_markers(each)):
            listed = ", ".join(map(quoted, markers))
            yield from ("", "[[data.fields]]", f"name = {quoted(names[each.column.name])}")
            shares = [f"{value} is in {share:.2%} of the rows" for value, share in sentinels_of(each).items()]
            yield f"missing = [{listed}]" + (f"  # {UNSURE}: {', '.join(shares)}" if shares else "")


def training_lines(total: int | None) -> Iterator[str]:
    """Yield a recipe for a small log. With few clicks and no penalties, a model is worse than the base rate."""
    if not total or total >= SMALL_LOG:
        return
    yield from ("", "[training]  # for a small log; ctr-train --auto finds better values")
    yield f"batch_size = {SMALL_BATCH}"
    yield f"embedding_l2 = {SMALL_EMBEDDING_L2}"
    yield f"net_l2 = {SMALL_NET_L2}"


def number_markers(each: Guess) -> Sequence[str]:
    """Return the values in a column of numbers that mean "missing"."""
    return () if each.column.numbers is None else (*each.column.possible, *sentinels_of(each))


def sentinels_of(each: Guess) -> Mapping[str, float]:
    """Return the numbers that may mean "missing". In a categorical field, such a number is an ordinary category."""
    return each.column.sentinels if each.kind == "numeric" else {}


def remark(each: Guess) -> str:
    """Return the comment beside a field."""
    column = each.column
    if each.kind == "numeric" and column.numbers is not None:
        usual = column.numbers.drop_nulls()
        usual = usual.filter(~usual.is_in([float(value) for value in column.sentinels]))
        numbers = usual.to_numpy()
        shown = f"{numbers.min():g} to {numbers.max():g}"
    else:
        shown = f"{column.distinct:,} values, such as {comment(column.top)}"
    missing = f", {column.missing:.1%} missing" if column.missing else ""
    return f"{shown}{missing}" + (f"; {UNSURE}: {comment(each.unsure)}" if each.unsure else "")


def comment(text: str, length: int = 80) -> str:
    """Return text for a comment: one line, shortened, without control characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= length else f"{plain[:length]}..."
