"""Guessing what the columns of a log mean: the label, the time, and the side and kind of each field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from contract.schema import Kind, Side
from model.data.field_auc import count_values
from model.data.inspect.columns import Column
from model.data.inspect.words import (
    ALWAYS_CONTEXT,
    CANDIDATE_WORDS,
    CLICK_VALUES,
    CONTEXT_WORDS,
    ID_WORDS,
    ITEM_WORDS,
    LABEL_WORDS,
    NUMBER_WORDS,
    OTHER_VALUES,
    PREDICTION_WORDS,
    REQUEST_WORDS,
    USER_WORDS,
    WEIGHT_WORDS,
    words,
)
from model.data.value_warnings import leak_warning, quoted, text_warnings, unique_warning

MAX_LABELS = 20  # a label column has at most this many distinct values
TWO_VALUES = 2  # integers with at most two values are categories, whatever the name says
FEW_VALUES = 50  # integers with at most this many distinct values are usually categories
MIN_GROUPS = 30  # variation within groups is measured only if this many groups have at least two rows
CONSTANT_SHARE = 0.99
VARYING_SHARE = 0.9
MANY_MISSING = 0.5  # a time that is missing more often is not the time of the row

LEAK = "gives the label away"

Role = Literal["label", "time", "request", "weight", "field", "unused"]


@dataclass
class Guess:
    """The guessed meaning of one column.

    Attributes:
        column: The column.
        role: What the column is for.
        side: The side of a field.
        kind: The kind of a field.
        unsure: What to check, or "" if the guess is likely right.
        note: Why the column is not used, or "".
    """

    column: Column
    role: Role = "field"
    side: Side = "context"
    kind: Kind = "categorical"
    unsure: str = ""
    note: str = ""


@dataclass
class Guesses:
    """The guessed meaning of a log.

    Attributes:
        columns: The guesses, by column, in the order of the file.
        label: The label column, or "" if none was found.
        positive: The labels that are clicks, or () if the labels are 0 and 1.
        label_unsure: What to check about the label, or "".
        time: The column with the time of each row, or "".
        request: The column with the request, or "".
        unit: The column with the user, or "".
        weight: The column with the weight, or "".
        warnings: Warnings about the values.
    """

    columns: dict[str, Guess]
    label: str = ""
    positive: tuple[str, ...] = ()
    label_unsure: str = ""
    time: str = ""
    request: str = ""
    unit: str = ""
    weight: str = ""
    warnings: list[str] = field(default_factory=list)

    def fields(self, side: Side) -> list[Guess]:
        """Return the fields of a side."""
        return [guess for guess in self.columns.values() if guess.role == "field" and guess.side == side]


def guess(columns: Sequence[Column], is_head: bool = False) -> Guesses:
    """Return what the columns of a log probably mean, and warnings about their values.

    Args:
        columns: The columns of a sample.
        is_head: Whether the sample contains only the first rows. The other rows may contain other values.
    """
    found = Guesses({column.name: Guess(column) for column in columns})
    guess_label(found)
    guess_time(found)
    guess_roles(found)
    labels = None
    if found.label:
        labels = click_labels(found.columns[found.label].column, found.positive)
    for each in found.columns.values():
        if each.role == "field":
            each.kind, each.unsure = guess_kind(each.column)
            check_values(each, found, labels, is_head)
    guess_sides(found)
    return found


def guess_label(found: Guesses) -> None:
    """Find the label: a column with few values, by its name and its values."""
    few = [each.column for each in found.columns.values() if 2 <= each.column.distinct <= MAX_LABELS]
    named = [column for column in few if LABEL_WORDS & {*words(column.name)}]
    readable = [column for column in named if positive_labels(column) is not None]
    binary = [column for column in few if column.values <= {"0", "1", "0.0", "1.0"} and not column.missing]
    choices = sorted(readable, key=lambda column: (column.distinct, label_rank(column.name))) or binary
    if not choices:
        return
    label = choices[0]
    found.label, found.columns[label.name].role = label.name, "label"
    found.positive = positive_labels(label) or ()
    if not readable:
        found.label_unsure = "the name does not suggest that this is the label"
    elif label.distinct > 2:
        found.label_unsure = f"the values are {', '.join(sorted(label.values)[:6])}"
    elif len(readable) > 1:
        others = ", ".join(column.name for column in choices[1:4])
        found.label_unsure = f"the label could also be {others}"
        for column in choices[1:]:
            unused(found.columns[column.name], "may be a label too")


def label_rank(name: str) -> int:
    """Return the rank of a column name. A lower rank means that the column is more likely to be the label."""
    parts = {*words(name)}
    ranks = ({"click", "clicked", "clk", "isclick"}, {"label"}, {"target", "y"})
    return next((rank for rank, some in enumerate(ranks) if parts & some), len(ranks))


def positive_labels(column: Column) -> tuple[str, ...] | None:
    """Return the labels that are clicks, () if the labels are 0 and 1, or None if no value looks like a click."""
    values = column.values
    if values <= {"0", "1", "0.0", "1.0"} or (column.type == "boolean" and values <= {"true", "false"}):
        return () if values <= {"0", "1", "0.0", "1.0"} else ("true",)
    clicks = tuple(sorted(value for value in values if value.strip().lower() in CLICK_VALUES))
    others = {value for value in values if value.strip().lower() in OTHER_VALUES}
    if clicks and (others or len(values) > 2):
        return clicks
    return None


def click_labels(column: Column, positive: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the labels as 0 and 1, int64 (rows)."""
    clicks = column.text.is_in([*(positive or ("1", "1.0"))]).fill_null(False)
    return clicks.cast(pl.Int64).to_numpy()


def guess_time(found: Guesses) -> None:
    """Find the column with the time of each row: a column of times that is rarely missing.

    Columns that are never missing are preferred, then columns with more distinct values.
    """
    times = [each for each in found.columns.values() if each.column.type == "time" and each.role == "field"]
    for each in times:
        each.role = "unused"
        each.note = "a time"
    present = [each for each in times if each.column.missing < MANY_MISSING and each.column.distinct > 1]
    ranked = sorted(present, key=lambda each: (each.column.missing > 0, -each.column.distinct))
    if ranked:
        ranked[0].role, ranked[0].note = "time", ""
        found.time = ranked[0].column.name
    for each in times:
        if each.column.missing >= MANY_MISSING:
            each.note = "a time that is often missing, perhaps because it is written after the click"


def guess_roles(found: Guesses) -> None:
    """Find the columns for requests, users and weights, by their names."""
    for each in found.columns.values():
        name, parts = each.column.name, {*words(each.column.name)}
        if each.role != "field":
            continue
        if each.column.type == "other":
            unused(each, "values of this type are not supported")
        elif PREDICTION_WORDS & parts and each.column.type == "decimal":
            unused(each, "looks like the output of a model")
        elif not found.request and REQUEST_WORDS & parts and FEW_VALUES < each.column.distinct < len(each.column.text):
            found.request, each.role = name, "request"
        elif not found.unit and USER_WORDS & parts and each.column.distinct > FEW_VALUES:
            found.unit = name
        elif not found.weight and WEIGHT_WORDS & parts and each.column.numbers is not None:
            found.weight, each.role = name, "weight"


def guess_kind(column: Column) -> tuple[Kind, str]:
    """Return the kind of a field, and what to check about it."""
    if column.numbers is None or column.distinct == 1:  # one number and missing values
        return "categorical", ""
    parts = {*words(column.name)}
    present = column.numbers.drop_nulls()
    if column.type == "decimal" and not (present == present.floor()).all():
        return "numeric", ""
    if parts & (ID_WORDS | USER_WORDS | ITEM_WORDS) and not parts & {"count", "num", "cnt", "price"}:
        return "categorical", ""
    if parts & NUMBER_WORDS and column.distinct > TWO_VALUES:
        return "numeric", ""
    if column.distinct <= FEW_VALUES:
        return "categorical", ""
    return "categorical", "the integers may be quantities instead of ids"


def check_values(
    each: Guess, found: Guesses, labels: np.ndarray[tuple[int], np.dtype[np.int64]] | None, is_head: bool
) -> None:
    """Add the warnings about a field. Mark it as unused if it cannot help or if it gives the label away."""
    column, name = each.column, each.column.name
    rows = len(column.text)
    if column.distinct <= 1 and (not column.missing or not column.distinct):
        value = f'the value "{column.top}"' if column.distinct else "no value"
        if is_head:
            each.unsure = "the first rows contain only this value, and no other rows were read"
            return
        unused(each, f"{value} in every row")
        found.warnings.append(f'column "{name}" has {value} in every sampled row. Remove the field.')
        return
    numeric = each.kind == "numeric"
    counts = count_values(column.numbers if numeric and column.numbers is not None else column.text, labels)
    unique = None if numeric else unique_warning(name, column.distinct, round(rows * (1 - column.missing)))
    if unique:
        unused(each, "a different value in almost every row")
        found.warnings.append(unique)
        return
    if labels is not None and (leak := leak_warning(name, counts, quoted(found.label), numeric)):
        unused(each, LEAK)
        found.warnings.append(leak)
        return
    if not numeric:
        found.warnings += text_warnings(name, counts)


def unused(each: Guess, note: str) -> None:
    """Mark a column as unused, and record why."""
    each.role, each.note = "unused", note


def guess_sides(found: Guesses) -> None:
    """Choose the side of each field by its variation within a request, by its name, or by what it depends on."""
    fields = [each for each in found.columns.values() if each.role == "field"]
    varies = variation(found, fields)
    open_fields = []
    for each in fields:
        name = each.column.name
        if name in varies:
            each.side = varies[name]
        elif (side := side_by_name(name)) is not None:
            each.side = side
        else:
            open_fields.append(each)
    item = next((e for e in fields if e.side == "candidate" and ITEM_WORDS & {*words(e.column.name)}), None)
    for each in open_fields:
        depends_on_item = item is not None and is_constant(each.column, item.column)
        each.side = "candidate" if depends_on_item else "context"
        doubt = f"depends only on {item.column.name}" if depends_on_item and item else "the side is a guess"
        each.unsure = "; ".join(filter(None, (each.unsure, doubt)))
    ensure_side(found, "context")
    ensure_side(found, "candidate")


def variation(found: Guesses, fields: Sequence[Guess]) -> Mapping[str, Side]:
    """Return the side of each field whose variation within a request is clear.

    If there is no request column, the rows of a user at the same time are a request.
    """
    keys = [found.request] if found.request else [found.unit, found.time]
    if not all(keys):
        return {}
    frame = pl.DataFrame({each.column.name: each.column.text for each in fields})
    key = pl.struct([found.columns[name].column.text.alias(name) for name in keys], eager=True).hash()
    groups = frame.with_columns(key.alias("__group__")).group_by("__group__")
    distinct = groups.agg(pl.len().alias("__rows__"), pl.exclude("__group__").n_unique())
    distinct = distinct.filter(pl.col("__rows__") >= 2)
    if len(distinct) < MIN_GROUPS:
        return {}
    sides: dict[str, Side] = {}
    for each in fields:
        name = each.column.name
        constant = float((distinct[name] == 1).mean() or 0)  # type: ignore[arg-type]
        if constant >= CONSTANT_SHARE:
            sides[name] = "context"
        elif constant < VARYING_SHARE:
            sides[name] = "candidate"
    # If all rows of a request show the same ad, a constant field does not have to belong to the context.
    return sides if "candidate" in sides.values() else {}


def side_by_name(name: str) -> Side | None:
    """Return the side that the first known word of a name suggests, or None."""
    parts = words(name)
    if ALWAYS_CONTEXT & {*parts}:
        return "context"
    for part in parts:
        if part in CONTEXT_WORDS:
            return "context"
        if part in CANDIDATE_WORDS:
            return "candidate"
    return None


def is_constant(column: Column, key: Column) -> bool:
    """Return whether a column almost always has the same value in all rows with the same key."""
    frame = pl.DataFrame({"key": key.text, "value": column.text}).drop_nulls("key")
    distinct = frame.group_by("key").agg(pl.len().alias("rows"), pl.col("value").n_unique().alias("values"))
    distinct = distinct.filter(pl.col("rows") >= 2)
    return len(distinct) >= MIN_GROUPS and float((distinct["values"] == 1).mean() or 0) >= CONSTANT_SHARE  # type: ignore[arg-type]


def ensure_side(found: Guesses, side: Side) -> None:
    """If a side has no categorical field, find one for it, because a model needs one on each side."""
    if any(each.kind == "categorical" for each in found.fields(side)):
        return
    for each in found.columns.values():
        if each.note == LEAK and each.kind == "categorical" and side_by_name(each.column.name) == side:
            each.role, each.side, each.unsure = "field", side, f"{LEAK}, but no other {side} field is left"
            return
    other: Side = "candidate" if side == "context" else "context"
    movable = [each for each in found.fields(other) if each.kind == "categorical"]
    if len(movable) < 2:
        return
    moved = max(movable, key=lambda each: (bool(each.unsure), each.column.distinct))
    moved.side = side
    moved.unsure = f"no column looked like a {side} field; check the sides of all fields"
