"""Score all rows of a set of files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from msgspec import UNSET
from numpy.typing import NDArray

from contract.encode import Encoder
from contract.pseudonyms import Pseudonymizer
from contract.reader import BadFeature
from export.predict.output import check_output, check_types, new_output
from export.predict.rows import Batch, kept_name, open_frames, read_batches, sent_values
from export.predict.scorer import Scorer
from model.data.readers.files import Source
from model.data.readers.log import LINE, position
from model.data_config import Data

CTR = "ctr"


@dataclass
class Summary:
    """What was scored.

    Attributes:
        rows: The number of rows.
        bad: The number of rows that could not be encoded. Their probability is null.
        first_bad: Why the first bad row could not be encoded. Empty if there is no such row.
    """

    rows: int = 0
    bad: int = 0
    first_bad: str = ""


def open_inputs(
    scorer: Scorer, sources: Sequence[Source], keep: Sequence[str], data: Data | None
) -> dict[Path, pl.LazyFrame]:
    """Return the files to score, with the columns that the model reads and the columns to keep.

    Args:
        scorer: The run or bundle.
        sources: The files.
        keep: Columns to copy to the output.
        data: The [data] section that describes the files, or None for the run's section.

    Raises:
        ValueError: If a file cannot be read or does not have all these columns, or a column to keep is named "ctr" or
            has pseudonyms in the model.
    """
    if CTR in keep:
        raise ValueError(f'--keep {CTR}: the output has a column "{CTR}" with the probabilities. Rename yours.')
    secret = {field.reads for field in scorer.schema.fields if field.pseudonym is not UNSET}
    if raw := sorted(secret.intersection(keep)):
        raise ValueError(
            f"--keep {raw[0]}: the model reads pseudonyms of this column, and the output would contain the raw values. "
            "Keep another column, such as a row number."
        )
    columns = dict.fromkeys(field.reads for field in scorer.schema.fields)
    return open_frames(sources, list(columns), list(dict.fromkeys(keep)), data or scorer.data)


def predict(
    scorer: Scorer,
    frames: Mapping[Path, pl.LazyFrame],
    out: Path,
    keep: Sequence[str] = (),
    bad_rows_are_null: bool = False,
    on_rows: Callable[[int], None] = lambda rows: None,
    pseudonyms: Pseudonymizer | None = None,
) -> Summary:
    """Write the probability of each row to a file, in the order of the files, and return what was scored.

    Args:
        scorer: The run or bundle.
        frames: The files (see open_inputs()).
        out: The file to write: Parquet, CSV or TSV.
        keep: Columns to copy to the output.
        bad_rows_are_null: Write null for a row that cannot be encoded, instead of raising.
        on_rows: Called after each batch with its number of rows.
        pseudonyms: The key for fields with pseudonyms. Without a key, their values must be pseudonyms already.

    Raises:
        ValueError: If a row cannot be encoded or a file cannot be read. The message names the file and line.
    """
    check_output(out, list(frames))
    encoder, summary = Encoder(scorer.schema, pseudonyms=pseudonyms), Summary()
    kept = [pl.col(kept_name(name)).alias(name) for name in dict.fromkeys(keep)]
    check_types(out, next(iter(frames.values())).select(kept).collect_schema())
    with new_output(out) as output:
        for batch in read_batches(frames):
            ctr = score_batch(scorer, encoder, batch, summary, bad_rows_are_null)
            output.append(batch.rows.select(*kept, pl.Series(CTR, ctr).fill_nan(None)))
            summary.rows += len(batch.rows)
            on_rows(len(batch.rows))
        if not summary.rows:
            raise ValueError(f"{', '.join(map(str, frames))}: no rows.")
    return summary


def score_batch(
    scorer: Scorer, encoder: Encoder, batch: Batch, summary: Summary, bad_rows_are_null: bool
) -> NDArray[np.float64]:
    """Return the probability of each row of a batch, (rows), with NaN for a row that cannot be encoded."""
    rows = sent_values(batch.rows, scorer.schema)
    try:
        return scorer.score(encoder, rows)
    except ValueError:
        # Reading whole columns does not show which row is bad. Check row by row to find it.
        errors = encoder.row_errors(rows)
        if not errors:
            raise
    if not bad_rows_are_null or not summary.bad:
        index, error = next(iter(errors.items()))
        message = bad_row(batch, index, error, rows[index], encoder)
        if not bad_rows_are_null:
            raise ValueError(f"{message}. Fix the row, or add --on-bad-row null to write no probability for it.")
        summary.first_bad = message
    summary.bad += len(errors)
    good = [index for index in range(len(rows)) if index not in errors]
    ctr = np.full(len(rows), np.nan)
    if good:
        ctr[good] = scorer.score(encoder, [rows[index] for index in good])
    return ctr


def bad_row(batch: Batch, index: int, error: BadFeature, row: Mapping[str, object], encoder: Encoder) -> str:
    """Return a message that names the file, the line, the field and, unless the field has pseudonyms, its value."""
    name = error.path.removeprefix("$.")
    value = "" if name in encoder.pseudonym_names else f": {row.get(name)!r}"
    return f"{position(str(batch.path), batch.rows[LINE][index])}: {error.reason}{value}"
