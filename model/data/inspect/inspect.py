"""Inspecting a log: from paths to guesses, warnings and a first experiment."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from model.data.inspect.columns import describe
from model.data.inspect.experiment import write_experiment
from model.data.inspect.file_dates import date_in
from model.data.inspect.guess import Guesses, guess
from model.data.inspect.layout import Layout, Period, find_layout, find_period
from model.data.inspect.sample import SAMPLE_ROWS, Sample, count_rows, read_sample
from model.data.readers.files import Source
from model.data.readers.named import find_named_files
from model.data_config import DataSection
from model.unused_keys import check_data_keys


@dataclass(frozen=True)
class Inspected:
    """What a sample of a log shows.

    Attributes:
        name: The name of the experiment.
        sample: The sample.
        found: The guesses.
        layout: The log's files.
        total: The number of rows of the log, or None if the log is too large to count them.
        period: The period of the log, or None if it has no time.
    """

    name: str
    sample: Sample
    found: Guesses
    layout: Layout
    total: int | None
    period: Period | None

    @property
    def warnings(self) -> list[str]:
        """Warnings about the values."""
        messages = [*self.found.warnings]
        for each in self.found.columns.values():
            if each.role == "field" and each.kind == "numeric":
                messages += [
                    f'column "{each.column.name}": {value} is in {share:.2%} of the sampled rows and is outside the '
                    "range of all other numbers. If it means missing, add it to the field's missing."
                    for value, share in each.column.sentinels.items()
                ]
        return messages

    def experiment(self) -> str:
        """Return a first experiment as TOML (see write_experiment())."""
        text = write_experiment(self.name, self.sample, self.found, self.layout, self.period, self.total)
        document = msgspec.toml.decode(text)
        # Never write a file that ctr-prepare would reject.
        check_data_keys(msgspec.convert(document, DataSection).data, document["data"])
        return text


def inspect_log(arguments: Sequence[str], data: Path, name: str, rows: int = SAMPLE_ROWS) -> Inspected:
    """Look at a sample of a log.

    Args:
        arguments: Files, folders and globs.
        data: The base folder for the paths of experiments.
        name: The name of the experiment.
        rows: The maximum number of sampled rows.

    Raises:
        ValueError: If the files cannot be read or do not belong together.
    """
    named = find_named_files(arguments)
    sample = read_sample(named.sources, rows)
    found = guess([describe(column) for column in sample.rows.iter_columns()], sample.is_head)
    period = find_period(sample, found.columns[found.time].column) if found.time else None
    layout = find_layout(arguments, named, data)
    if layout.by_date:
        mark_dates(found, named.sources)
    return Inspected(name, sample, found, layout, count_rows(sample), period)


def mark_dates(found: Guesses, sources: Sequence[Source]) -> None:
    """Mark the fields from partition folders such as dt=20260131, which are unknown in test after a split by date."""
    for name, value in sources[0].partitions.items():
        each = found.columns.get(name)
        if each is not None and each.role == "field" and date_in(value or ""):
            each.unsure = "the date of a row in test does not occur in train; remove the field"
