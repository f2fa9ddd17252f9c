"""The table of fields and the warnings that ctr-prepare prints about a prepared log."""

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray
from rich.table import Table

from contract.vocabulary import FIRST, UNKNOWN, open_vocabulary
from model.data.prepare.columns import shown
from model.data.prepare.prepared import Prepared

# A log that is split by time may have many new ads on its last day, but a larger share than this is unlikely.
MAX_UNKNOWN_SHARE = 0.8
CAPTION = "missing: share in train; unknown: share in test that is not in the vocabulary\n"


def summary(prepared: Prepared) -> Table:
    """Return a table with a row for each field, which reveals columns that are mostly unknown or missing."""
    rows = ", ".join(
        f"{name} {facts.rows:,} rows with {facts.click_rate:.2%} clicks"
        for name, facts in prepared.facts.splits.items()
    )
    lines = Table("field", "side", "kind", "values", "missing", "unknown", caption=CAPTION + rows)
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
    messages = [*useless_fields(prepared), *sentinels(prepared)]
    fields = zip(
        prepared.schema.select("categorical"), prepared.vocabulary_sizes, unknown_shares(prepared), strict=True
    )
    for field, size, share in fields:
        if size > FIRST and share > MAX_UNKNOWN_SHARE:
            messages.append(
                f'column "{field.name}": {share:.2%} of the values in test are not in the vocabulary. '
                "Check that the vocabulary belongs to this log."
            )
    return messages


def sentinels(prepared: Prepared) -> list[str]:
    """Return a message for each number that probably means "missing"."""
    messages = []
    sources = {field.name: field.reads for field in prepared.schema.fields}
    for name, found in prepared.facts.sentinels.items():
        for value, share in found.items():
            messages.append(
                f'column "{sources[name]}": {value} is in {share:.2%} of the rows of train and lies outside all other '
                f'numbers. If it means "missing", add missing = ["{value}"] to the field "{name}".'
            )
    return messages


def unknown_shares(prepared: Prepared) -> NDArray[np.float64]:
    """Return the share of unknown values in the test set, (categorical fields)."""
    shares: NDArray[np.float64] = np.mean(prepared.split("test")[0] == UNKNOWN, axis=0)
    return shares
