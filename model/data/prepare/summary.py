"""The table of fields and the warnings that ctr-prepare prints about a prepared log."""

import numpy as np
import polars as pl
from msgspec import UNSET
from numpy.typing import NDArray
from rich.table import Table

from contract.schema import Field
from contract.vocabulary import FIRST, MISSING, UNKNOWN, open_vocabulary
from model.data.field_auc import count_values
from model.data.prepare.columns import shown
from model.data.prepare.prepared import Prepared, SplitFacts
from model.data.value_warnings import leak_warning, quoted, text_warnings, unique_warning

# A log that is split by time may have many new ads on its last day, but a larger share than this is unlikely.
MAX_UNKNOWN_SHARE = 0.8
SAMPLE_ROWS, SAMPLE_PARTS = 50_000, 20  # the sample for the warnings about values
CAPTION = "missing: share in train; unknown: share in test that is not in the vocabulary"


def summary(prepared: Prepared) -> Table:
    """Return a table with a row for each field, which reveals columns that are mostly unknown or missing."""
    lines = Table("field", "side", "kind", "values", "missing", "unknown", caption=CAPTION)
    names = [field.name for field in prepared.schema.select("categorical")]
    unknown = dict(zip(names, unknown_shares(prepared), strict=True))
    sizes = dict(zip(names, prepared.vocabulary_sizes, strict=True))
    for field in prepared.schema.fields:
        missing = f"{prepared.facts.missing[field.name]:.1%}"
        if field.kind == "categorical":
            lines.add_row(
                field.name,
                field.side,
                field.kind,
                f"{sizes[field.name] - FIRST:,} tokens",
                missing,
                f"{unknown[field.name]:.2%}",
            )
        else:
            name = "" if field.transform is UNSET else f"{field.transform} "
            lines.add_row(field.name, field.side, field.kind, f"{name}{field.mean:.4g} ± {field.std:.4g}", missing, "")
    return lines


def split_lines(prepared: Prepared) -> list[str]:
    """Return a line about each split."""
    return [f"{name}: {describe(facts)}" for name, facts in prepared.facts.splits.items()]


def describe(facts: SplitFacts) -> str:
    """Return the size, click rate and period of a split, and how many rows were dropped."""
    period = f", {facts.period[0]} to {facts.period[1]}" if facts.period else ""
    if not facts.dropped:
        return f"{facts.rows:,} rows with {facts.click_rate:.2%} clicks{period}"
    total = facts.rows + facts.dropped
    others = total - facts.clicks
    kept = f"all {facts.clicks:,} clicks and {others - facts.dropped:,} of {others:,} non-clicks"
    return f"{total:,} rows with {facts.clicks / total:.2%} clicks{period}; kept {facts.rows:,}: {kept}"


def useless_fields(prepared: Prepared) -> list[str]:
    """Return a message for each field that has at most one value in the training set and so carries no information."""
    messages = []
    ids = prepared.split("train")[0]
    categorical = prepared.schema.select("categorical")
    for column, (field, size) in enumerate(zip(categorical, prepared.vocabulary_sizes, strict=True)):
        missing = prepared.facts.missing[field.name]
        if size == FIRST and missing == 1:
            messages.append(f'column "{field.name}" is missing in every row of train. Remove the field.')
        elif size == FIRST:
            reason = "no value occurs min_count times in train"
            messages.append(f'column "{field.name}" has no tokens: {reason}. Lower min_count or remove the field.')
        elif size == FIRST + 1 and not missing and not (ids[:, column] == UNKNOWN).any():
            ((token, _),) = open_vocabulary(prepared.vocabulary, field.name).items()
            messages.append(f'column "{field.name}" holds {shown(token)} in every row of train. Remove the field.')
    for field in prepared.schema.select("numeric"):
        if field.seen is UNSET:
            messages.append(f'column "{field.name}" is missing in every row of train. Remove the field.')
        elif field.seen[0] == field.seen[1]:
            holds = (
                f"holds {field.seen[0]:g} in every row of train that has a number, so no weight can be trained on it"
            )
            messages.append(f'column "{field.name}" {holds}. Remove the field or make it categorical.')
    return messages


def warnings(prepared: Prepared) -> list[str]:
    """Return messages about what looks suspicious but is not necessarily a mistake."""
    return [*useless_fields(prepared), *sentinels(prepared), *value_warnings(prepared), *unknown_warnings(prepared)]


def value_warnings(prepared: Prepared) -> list[str]:
    """Return the warnings about the values of each field (see model/data/value_warnings.py), in a sample of train."""
    ids, values, labels = sample_rows(prepared)
    data, rows = prepared.facts.data, prepared.facts.splits["train"].rows
    messages: list[str] = []
    label = quoted(data.label) if data.reader == "table" else "the label"
    categorical = prepared.schema.select("categorical")
    for column, (field, size) in enumerate(zip(categorical, prepared.vocabulary_sizes, strict=True)):
        counts = count_values(pl.Series(ids[:, column]), labels)
        if data.min_count_of(field.name) == 1 and not data.vocabulary:
            present = round(rows * (1 - prepared.facts.missing[field.name]))
            messages += filter(None, [unique_warning(field.name, size - FIRST, present)])
        tokens = with_tokens(counts, prepared, field)
        messages += filter(None, [leak_warning(field.name, tokens, label)])
        if field.transform is UNSET and field.pseudonym is UNSET:
            messages += text_warnings(field.name, tokens)
    for column, field in enumerate(prepared.schema.select("numeric")):
        counts = with_numbers(count_values(pl.Series(values[:, column]).fill_nan(None), labels), field)
        messages += filter(None, [leak_warning(field.name, counts, label, numeric=True)])
    return messages


def sample_rows(prepared: Prepared) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the ids, normalized values and labels of at most SAMPLE_ROWS rows of train, from all its parts."""
    ids, values, labels = prepared.split("train")
    if len(labels) <= SAMPLE_ROWS:
        return np.asarray(ids), np.asarray(values), labels
    length = SAMPLE_ROWS // SAMPLE_PARTS
    starts = np.linspace(0, len(labels) - length, SAMPLE_PARTS).astype(np.int64)
    parts = [slice(start, start + length) for start in starts.tolist()]
    return tuple(np.concatenate([array[part] for part in parts]) for array in (ids, values, labels))  # type: ignore[return-value]


def with_tokens(counts: pl.DataFrame, prepared: Prepared, field: Field) -> pl.DataFrame:
    """Replace the ids in a column's counts with their tokens. Unknown values are left out; missing ones are null."""
    counts = counts.filter(pl.col("value") != UNKNOWN)
    ids = counts["value"].to_numpy()
    vocabulary = open_vocabulary(prepared.vocabulary, field.name)
    texts: list[str | None] = [*vocabulary.tokens_of(ids[ids != MISSING])]
    for row in np.flatnonzero(ids == MISSING).tolist():
        texts.insert(row, None)
    return counts.with_columns(value=pl.Series(texts, dtype=pl.String))


def with_numbers(counts: pl.DataFrame, field: Field) -> pl.DataFrame:
    """Replace the normalized numbers in a column's counts with the numbers in the log."""
    numbers = counts["value"].to_numpy().astype(np.float64) * field.std + field.mean
    if field.transform == "log1p":
        numbers = np.copysign(np.expm1(np.abs(numbers)), numbers)
    # Normalized numbers have the precision of float32.
    return counts.with_columns(value=pl.Series(numbers).fill_nan(None).round_sig_figs(6))


def unknown_warnings(prepared: Prepared) -> list[str]:
    """Return messages about fields whose values are mostly unknown.

    Only the key `vocabulary` can name a different log's vocabulary, so the message suggests this only if it is set.
    """
    data = prepared.facts.data
    train = np.mean(sample_rows(prepared)[0] == UNKNOWN, axis=0)
    fields = zip(
        prepared.schema.select("categorical"),
        prepared.vocabulary_sizes,
        train.tolist(),
        unknown_shares(prepared).tolist(),
        strict=True,
    )
    messages = []
    for field, size, in_train, in_test in fields:
        min_count = data.min_count_of(field.name)
        if size == FIRST or max(in_train, in_test) <= MAX_UNKNOWN_SHARE:
            continue
        if data.vocabulary:
            reason = f"{in_test:.2%} of the values in test are not in the vocabulary"
            messages.append(f'column "{field.name}": {reason}. Check that the vocabulary belongs to this log.')
        elif in_train > MAX_UNKNOWN_SHARE:
            reason = f"{in_train:.2%} of the rows of train have a value that occurs fewer than {min_count} times"
            messages.append(f'column "{field.name}": {reason}. Lower min_count or remove the field.')
        elif min_count == 1 and field.transform is UNSET:
            reason = f"{in_test:.2%} of the rows of test have a value that does not occur in train"
            fix = "The model cannot use such values. Remove the field, or use values that occur again, such as groups"
            messages.append(f'column "{field.name}": {reason}. {fix}.')
    return messages


def sentinels(prepared: Prepared) -> list[str]:
    """Return a message for each number that probably means "missing"."""
    messages = []
    sources = {field.name: field.reads for field in prepared.schema.fields}
    for name, found in prepared.facts.sentinels.items():
        for value, share in found.items():
            messages.append(
                f'column "{sources[name]}": {value} is in {share:.2%} of the rows of train and is outside the range '
                f'of all other numbers. If it means "missing", add missing = ["{value}"] to the field "{name}".'
            )
    return messages


def unknown_shares(prepared: Prepared) -> NDArray[np.float64]:
    """Return the share of unknown values in the test set, (categorical fields)."""
    shares: NDArray[np.float64] = np.mean(prepared.split("test")[0] == UNKNOWN, axis=0)
    return shares
