"""[data] of an experiment's TOML file: where a log lies and what its columns mean."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from contract.schema import Field, Kind, Side
from model.toml import Positive, read_toml


class FieldSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a user says of one field; what is left out is the reader's choice, and else the default.

    side: needed for reader = "table" alone. missing: values that mean that there is none. min_count: instead of the
    log's. transform: "log_square" makes a category of a number, as Criteo's winners did; see contract/tokens.py.
    """

    name: str
    side: Side | None = None
    kind: Kind | None = None
    missing: tuple[str, ...] | None = None
    min_count: Positive | None = None
    transform: Literal["none", "log_square"] | None = None

    def apply(self, field: Field) -> Field:
        """The field as this wants it."""
        kind = self.kind or field.kind
        transform = field.transform if self.transform is None else self.transform
        return Field(
            self.name,
            self.side or field.side,
            kind,
            missing=field.missing if self.missing is None else self.missing or UNSET,
            transform=UNSET if transform == "none" else transform,
        )


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the log lies and what its columns mean. Paths are relative to `--data`.

    reader: who knows the log's columns; only "table" needs the keys from `train` to `numeric`, or `fields` in place of
    `context`, `candidate` and `numeric`. fields: to another reader, what to do differently with some of its fields.
    columns: the names of a text file's columns, where it has no header line.
    folder: the raw log. prepared: where ctr-prepare writes and ctr-train reads.
    min_count: a token seen less often in train gets the unknown id.
    negative_rate: the share of the negatives that the log kept; the bundle's calibration undoes it.
    split, split_seed: of a log that is published in one piece, by a draw for each row, or by day ("time") where its
    reader knows the day.
    vocabulary: a folder of vocabularies to use as they are, instead of counting: see model/data/fuxictr/importer.py.
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
        """Of one field."""
        own = [spec.min_count for spec in self.fields if spec.name == name]
        return (own[0] if own else None) or self.min_count

    def __post_init__(self) -> None:
        if self.split == "time" and self.reader != "avazu":
            raise ValueError(f'reader = "{self.reader}" knows no time: split = "time" is for "avazu"')
        names = [spec.name for spec in self.fields]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"fields names {twice[0]!r} twice: say all of a field in one place")
        listed = {*self.context, *self.candidate}
        if self.reader == "table":
            self._check_table(listed)
        elif self.train or self.valid or self.test or self.numeric or self.columns or listed:
            raise ValueError(f'reader = "{self.reader}" knows its files and columns: remove those keys, or use "table"')

    def _check_table(self, listed: set[str]) -> None:
        declared = {spec.side for spec in self.fields}
        both = (self.context or "context" in declared) and (self.candidate or "candidate" in declared)
        if not (self.train and self.valid and self.test and both):
            raise ValueError(
                'reader = "table" needs train, valid, test, context and candidate, or fields that have these sides'
            )
        sides = (*self.context, *self.candidate)
        if twice := [name for name in sides if sides.count(name) > 1]:
            raise ValueError(f"field {twice[0]!r} is listed twice in context and candidate: it has one side")
        if strangers := set(self.numeric) - listed:
            raise ValueError(f"numeric field {min(strangers)!r} is in neither context nor candidate")
        for spec in self.fields:
            if spec.name not in listed and spec.side is None:
                raise ValueError(f'field {spec.name!r} needs its side: side = "context" or side = "candidate"')


class _DataAlone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An experiment's file, of which only [data] matters here: the rest is read where a model is made."""

    data: Data
    name: str = ""
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}


def read_data(path: Path) -> Data:
    """The [data] section, of an experiment or of a file with nothing else.

    Raises:
        ValueError: with the file's name and the key, for an unknown key or a value out of range.
    """
    alone: _DataAlone = read_toml(path, partial(msgspec.convert, type=_DataAlone))
    return alone.data
