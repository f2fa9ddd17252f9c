"""The [data] section of an experiment's TOML file: the location of a log and the meaning of its columns."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from contract.schema import Field, Kind, Side
from model.toml import Positive, read_toml


class FieldSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of [[data.fields]]. If a key is not set, the reader's value or the default applies.

    Attributes:
        name: The name of the column.
        side: Whether the field belongs to the context or to the candidate. Required only with reader = "table", for a
            field that is in neither `context` nor `candidate`.
        kind: Whether the field is categorical or numeric.
        missing: Values to treat as missing.
        min_count: Overrides the `min_count` of [data] for this field.
        transform: "log_square" converts a number to a category, as the winners of the Criteo challenge did (see
            contract/tokens.py). "none" removes the reader's transform.
    """

    name: str
    side: Side | None = None
    kind: Kind | None = None
    missing: tuple[str, ...] | None = None
    min_count: Positive | None = None
    transform: Literal["none", "log_square"] | None = None

    def apply(self, field: Field) -> Field:
        """Return the reader's field with the keys of this entry applied."""
        transform = field.transform if self.transform is None else self.transform
        return Field(
            self.name,
            self.side or field.side,
            self.kind or field.kind,
            missing=field.missing if self.missing is None else self.missing or UNSET,
            transform=UNSET if transform == "none" else transform,
        )


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The [data] section. Paths are relative to `--data`.

    Attributes:
        reader: The module in model/data/readers that reads the log. The keys from `train` to `numeric`, and `columns`,
            apply only to "table". With "table", `fields` may replace `context`, `candidate` and `numeric`.
        folder: The folder with the raw log, relative to `--data`.
        prepared: The folder that ctr-prepare writes and ctr-train reads, relative to `--data`.
        min_count: Tokens that occur fewer times than this in the training set get the unknown id.
        negative_rate: The fraction of negatives that were kept when the log was downsampled. The bundle's calibration
            corrects for it.
        split: How to split a log that is published as a single file. "row" splits it 8:1:1, at random by row. "time"
            uses the last day as the test set and the day before it as the validation set; only reader = "avazu"
            supports it.
        split_seed: The random seed of the "row" split.
        train: The file with the training set, relative to `folder`.
        valid: The file with the validation set, relative to `folder`.
        test: The file with the test set, relative to `folder`.
        label: The name of the label column, which contains 0 and 1.
        context: The columns that belong to the context.
        candidate: The columns that belong to the candidate.
        numeric: The columns in `context` and `candidate` that are numeric. All others are categorical.
        fields: Settings of individual fields. With a reader other than "table", they override the reader's settings.
        columns: The column names of text files without a header line.
        vocabulary: A folder, relative to `--data`, with vocabularies to use instead of counting tokens (see
            model/data/fuxictr/importer.py).
    """

    reader: Literal[
        "avazu",
        "avazu_x1",
        "criteo",
        "criteo_x1",
        "frappe",
        "frappe_x1",
        "generated",
        "movielens_1m",
        "movielens_latest_x1",
        "movielens_tag",
        "table",
    ]
    folder: str
    prepared: str
    min_count: Positive = 1
    negative_rate: Annotated[float, Meta(gt=0, le=1)] = 1.0
    split: Literal["row", "time"] = "row"
    split_seed: int = 1
    train: str = ""
    valid: str = ""
    test: str = ""
    label: str = "label"
    context: tuple[str, ...] = ()
    candidate: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    fields: tuple[FieldSpec, ...] = ()
    columns: tuple[str, ...] = ()
    vocabulary: str = ""

    def min_count_of(self, name: str) -> int:
        """Return the min_count of one field."""
        counts = [spec.min_count for spec in self.fields if spec.name == name]
        return (counts[0] if counts else None) or self.min_count

    def __post_init__(self) -> None:
        if self.split == "time" and self.reader != "avazu":
            raise ValueError(f'split = "time" needs reader = "avazu"; reader = "{self.reader}" has no timestamps')
        if (name := first_duplicate([spec.name for spec in self.fields])) is not None:
            raise ValueError(f'fields lists "{name}" twice. Put all keys of a field in one entry.')
        if self.reader == "table":
            self._check_table()
        elif any((self.train, self.valid, self.test, self.context, self.candidate, self.numeric, self.columns)):
            raise ValueError(
                f'reader = "{self.reader}" has fixed files and columns. Remove train, valid, test, context, candidate, '
                'numeric and columns, or use reader = "table".'
            )

    def _check_table(self) -> None:
        sides = (*self.context, *self.candidate)
        declared = {spec.side for spec in self.fields}
        has_both_sides = (self.context or "context" in declared) and (self.candidate or "candidate" in declared)
        if not (self.train and self.valid and self.test and has_both_sides):
            raise ValueError(
                'reader = "table" needs train, valid, test, context and candidate. [[data.fields]] with both sides may '
                "replace context and candidate."
            )
        if (name := first_duplicate(sides)) is not None:
            raise ValueError(f'field "{name}" is listed twice in context and candidate. Remove one.')
        if unlisted := set(self.numeric) - set(sides):
            raise ValueError(f'numeric field "{min(unlisted)}" is in neither context nor candidate. Add it to one.')
        for spec in self.fields:
            if spec.name not in sides and spec.side is None:
                raise ValueError(f'field "{spec.name}" has no side. Add side = "context" or side = "candidate".')


def first_duplicate(names: Sequence[str]) -> str | None:
    """Return the first name that occurs more than once, or None."""
    return next((name for name in names if names.count(name) > 1), None)


class DataSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An experiment's file, of which only [data] is validated. Building a model validates the other sections."""

    data: Data
    name: str = ""
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}


def read_data(path: Path) -> Data:
    """Return the [data] section of an experiment's file, or of a file that contains only this section.

    Raises:
        ValueError: If a key is unknown or a value is out of range. The message names the file and the key.
    """
    section: DataSection = read_toml(path, partial(msgspec.convert, type=DataSection))
    return section.data
