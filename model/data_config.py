"""The [data] section of an experiment's TOML file: the location of a log and the meaning of its columns."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from contract.schema import Field, Kind, Pseudonym, Side
from contract.timestamps import time_zone
from contract.tokens import token
from model.toml import Positive, read_toml, to_struct
from model.unused_keys import check_data_keys, field_names, kind_of


class FieldSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of [[data.fields]]. If a key is not set, the reader's value or the default applies.

    Attributes:
        name: The name of the column.
        side: Whether the field belongs to the context or to the candidate. Required only with reader = "table", for a
            field that is in neither `context` nor `candidate`.
        kind: Whether the field is categorical or numeric.
        missing: Values to treat as missing.
        min_count: Overrides the `min_count` of [data] for this field.
        transform: "log_square" converts a number to a category, as the winners of the Criteo challenge did. "log1p"
            replaces a number x of a numeric field with sign(x) log(1 + |x|). "hour", "weekday" and "day" convert a
            timestamp to a category (see contract/tokens.py). "none" removes the reader's transform.
        source: The column, and the name in requests, from which the value is read. Several fields can read the same
            timestamp. In the TOML file, this key is called `from`. The default is the field's name.
        timezone: The time zone of the transforms "hour", "weekday" and "day", such as "Europe/Istanbul".
        pseudonym: "hmac" replaces each value of a categorical field without a transform, such as a user id, with a
            keyed hash before any use, so that the raw values are in no file that training or serving writes.
            ctr-prepare and the server need the key (see docs/privacy.md). The values in `missing` are recognized first.
    """

    name: str
    side: Side | None = None
    kind: Kind | None = None
    missing: tuple[str, ...] | None = None
    min_count: Positive | None = None
    transform: Literal["none", "log_square", "log1p", "hour", "weekday", "day"] | None = None
    source: str | None = msgspec.field(name="from", default=None)
    timezone: str | None = None
    pseudonym: Pseudonym | None = None

    def __post_init__(self) -> None:
        if self.timezone is not None:
            try:
                time_zone(self.timezone)
            except ValueError as error:
                raise ValueError(f'field "{self.name}": {error}') from error

    def apply(self, field: Field) -> Field:
        """Return the reader's field with the keys of this entry applied."""
        transform = field.transform if self.transform is None else self.transform
        return Field(
            self.name,
            self.side or field.side,
            self.kind or field.kind,
            missing=field.missing if self.missing is None else self.missing or UNSET,
            transform=UNSET if transform == "none" else transform,
            source=field.source if self.source is None else self.source,
            timezone=field.timezone if self.timezone is None else self.timezone,
            pseudonym=self.pseudonym or UNSET,
        )


CLIP_QUANTILE = 0.001  # the default of `clip_quantile` with reader = "table"
Duration = Annotated[str, Meta(pattern=r"^[1-9][0-9]*(s|m|h|d|w)$", examples=["1d", "12h"])]
Share = Annotated[float, Meta(gt=0, lt=1)]


class SplitByTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="by", tag="time"):
    """Split a log by its `time` column: the newest rows are test, the rows before them valid, and older rows train.

    Attributes:
        valid: The length of the validation set, such as "1d" or "12h" (s, m, h, d or w).
        test: The length of the test set.
        train: The length of the training set, such as "7d". Older rows are not used, so a log that grows every day can
            be trained with the same file. The default is to use all older rows.
        gap: The length of the gaps before valid and before test, whose rows are not used. The default is no gap.
    """

    valid: Duration
    test: Duration
    train: Duration | None = None
    gap: Duration | None = None


class SplitAtRandom(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="by", tag="random"
):
    """Split a log at random, by row or by unit.

    Attributes:
        valid: The share of the rows, or of the units, in the validation set.
        test: The share of the rows, or of the units, in the test set.
        seed: The random seed.
        unit: A column, such as the user. All rows with the same value are in the same split. The default is to split
            by row.
    """

    valid: Share
    test: Share
    seed: int = 1
    unit: str = ""

    def __post_init__(self) -> None:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid = {self.valid} and test = {self.test} leave no rows for train. Lower them.")


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
        train_negative_rate: The share of train's non-clicks that ctr-prepare keeps. It keeps all clicks, and all rows
            of valid and test. Training compensates for the share, so that predictions and metrics need no correction.
            The log itself stays complete, which distinguishes this key from `negative_rate`. Both can be set.
        split: How to split a log that is not split yet. A table with `by = "time"` or `by = "random"` splits the
            `files` of reader = "table". "row" splits a published file 8:1:1, at random by row. "time" uses the last day
            as the test set and the day before it as the validation set; only reader = "avazu" supports it.
        split_seed: The random seed of the "row" split.
        files: The files of a log that `split` divides into train, valid and test. The same values as in `train` are
            allowed.
        train: The files with the training set: one path, glob or folder relative to `folder`, or a URL such as
            s3://bucket/day.parquet, or a list of them. They are read in the order of their names. A folder such
            as `day=2026-01-01` adds the column `day` to every row in it.
        valid: The files with the validation set, as for `train`.
        test: The files with the test set, as for `train`.
        delimiter: The character between the columns of text files. The default is a comma for .csv files and a tab for
            .tsv and .txt files.
        quote: The character around values of text files that contain delimiters, quotes or line breaks. "" means that
            no character is special. The default is a double quote for .csv files, and "" for .tsv and .txt files.
        missing: Values to treat as missing in every field, and in the columns `unit` and `request`. A field's own
            `missing` adds further values.
        label: The name of the label column.
        positive: The labels that count as clicks, such as "1", "true" or "yes". Case does not matter, and 1 equals 1.0.
            All other labels are non-clicks, and a missing label is an error. By default, the label column must contain
            0 and 1, or false and true.
        time: The column with the time of each row, for split = { by = "time", ... }: ISO 8601 text, Unix seconds or
            milliseconds, or a timestamp.
        weight: The column with the weight of each row in the training loss. The default is 1 for every row.
        unit: The column with the unit, such as the user, by which metrics and their confidence intervals are grouped.
        request: The column with the request in which the row's candidate was shown. The metrics then include NDCG@10
            within a request.
        position: The column with the position at which the candidate was shown, an integer of at least 0, or empty. It
            is not a feature: training adds a trained effect of the position to the logit, so that the model's own logit
            is that of the average position. The bundle does not contain the effects.
        rename: New column names, keyed by the name in the files. All other keys except `columns` use the new names.
        clip_quantile: A value q clips numbers to the range between the quantiles q and 1 - q of the training set, so
            that a few extreme numbers do not affect their mean, standard deviation and range. 0 clips to the whole
            range. The default is 0.001 with reader = "table", and 0 with the readers of published logs.
        missing_number: What the model uses in place of a missing number: a trained vector, or the field's mean. The
            default is "vector" with reader = "table", and "mean" with the readers of published logs.
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
    train_negative_rate: Annotated[float, Meta(gt=0, le=1)] = 1.0
    split: Literal["row", "time"] | SplitByTime | SplitAtRandom = "row"
    split_seed: int = 1
    files: str | tuple[str, ...] = ()
    train: str | tuple[str, ...] = ""
    valid: str | tuple[str, ...] = ""
    test: str | tuple[str, ...] = ""
    delimiter: str = ""
    quote: str | None = None
    missing: tuple[str, ...] = ()
    label: str = "label"
    positive: tuple[str, ...] = ()
    time: str = ""
    weight: str = ""
    unit: str = ""
    request: str = ""
    position: str = ""
    rename: dict[str, str] = {}
    clip_quantile: Annotated[float, Meta(ge=0, lt=0.5)] | None = None
    missing_number: Literal["vector", "mean"] | None = None
    context: tuple[str, ...] = ()
    candidate: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    fields: tuple[FieldSpec, ...] = ()
    columns: tuple[str, ...] = ()
    vocabulary: str = ""

    @property
    def clip_share(self) -> float:
        """The share of the numbers that is clipped at each end of the range."""
        return self.clip_quantile if self.clip_quantile is not None else CLIP_QUANTILE * (self.reader == "table")

    @property
    def has_pseudonyms(self) -> bool:
        """Whether a field has pseudonyms."""
        return any(spec.pseudonym is not None for spec in self.fields)

    @property
    def has_missing_vector(self) -> bool:
        """Whether numeric fields have a trained vector for a missing number."""
        return (self.missing_number or ("vector" if self.reader == "table" else "mean")) == "vector"

    def __hash__(self) -> int:
        """Return a hash of some of the keys. Runs are looked up by their experiment, but `rename` cannot be hashed."""
        return hash((self.reader, self.folder, self.prepared, self.fields))

    def min_count_of(self, name: str) -> int:
        """Return the min_count of one field."""
        counts = [spec.min_count for spec in self.fields if spec.name == name]
        return (counts[0] if counts else None) or self.min_count

    def __post_init__(self) -> None:
        if self.split == "time" and self.reader != "avazu":
            raise ValueError(
                f'split = "time" needs reader = "avazu", not "{self.reader}". With reader = "table", set time and '
                'split = { by = "time", valid = "1d", test = "1d" }.'
            )
        if (name := first_duplicate([spec.name for spec in self.fields])) is not None:
            raise ValueError(f'fields lists "{name}" twice. Put all keys of a field in one entry.')
        if self.reader == "table":
            self._check_table()
        elif given := [key for key in TABLE_KEYS if getattr(self, key) or (key, self.quote) == ("quote", "")]:
            raise ValueError(
                f'reader = "{self.reader}" has fixed files and columns. Remove {", ".join(given)}, or use '
                'reader = "table".'
            )
        elif not isinstance(self.split, str):
            raise ValueError(f'split = {{ by = ... }} needs reader = "table", not "{self.reader}". Use split = "row".')

    def _check_table(self) -> None:
        sides = (*self.context, *self.candidate)
        declared = {spec.side for spec in self.fields}
        if not ((self.context or "context" in declared) and (self.candidate or "candidate" in declared)):
            raise ValueError('reader = "table" needs context and candidate, or [[data.fields]] entries for both sides.')
        self._check_files()
        self._check_text()
        if (name := first_duplicate(sides)) is not None:
            raise ValueError(f'field "{name}" is listed twice in context and candidate. Remove one.')
        if unlisted := set(self.numeric) - set(sides):
            raise ValueError(f'numeric field "{min(unlisted)}" is in neither context nor candidate. Add it to one.')
        for spec in self.fields:
            if spec.name not in sides and spec.side is None:
                raise ValueError(f'field "{spec.name}" has no side. Add side = "context" or side = "candidate".')
        self._check_kinds()
        read = {spec.name: spec.source or spec.name for spec in self.fields}
        if self.label in {read.get(name, name) for name in (*sides, *read)}:
            raise ValueError(f'the label "{self.label}" is also a field. Remove the field: the model would copy it.')
        if self.position in {read.get(name, name) for name in (*sides, *read)}:
            raise ValueError(
                f'the position "{self.position}" is also a field, but the server does not know it when it scores. '
                "Remove the field."
            )
        if self.position and self.position == self.label:
            raise ValueError(f'the position "{self.position}" is also the label. Name another column.')

    def _check_kinds(self) -> None:
        """Check that each side has a categorical field, because every schema needs one."""
        specs = {spec.name: spec for spec in self.fields}
        listed: tuple[tuple[Side, tuple[str, ...]], ...] = (("context", self.context), ("candidate", self.candidate))
        kinds: dict[str, tuple[Side, Kind]] = {
            name: (side, "numeric" if name in self.numeric else "categorical")
            for side, names in listed
            for name in names
        }
        for name, spec in specs.items():
            side, kind = kinds.get(name, (spec.side or "context", "categorical"))
            kinds[name] = spec.side or side, spec.kind or kind
        for side, _ in listed:
            if (side, "categorical") not in kinds.values():
                numeric = ", ".join(name for name, found in kinds.items() if found[0] == side)
                raise ValueError(
                    f"{side} has only numeric fields ({numeric}), but each side needs at least one categorical field, "
                    f"such as an id. Add one to {side}, or remove a field with few values from numeric."
                )

    def _check_text(self) -> None:
        """Check the keys that describe text files and their columns."""
        for key, value in (("delimiter", self.delimiter), ("quote", self.quote or "")):
            if value and (len(value) > 1 or not value.isascii() or value in "\r\n\0"):
                raise ValueError(f'{key} = {json.dumps(value)} must be one ASCII character, such as ";" or "\\t".')
        if self.delimiter and self.delimiter == self.quote:
            raise ValueError(f"delimiter and quote are both {json.dumps(self.quote)}. Change one.")
        if (name := first_duplicate(self.columns)) is not None:
            raise ValueError(f'columns lists "{name}" twice. Rename one of them.')
        if (name := first_duplicate(list(self.rename.values()))) is not None:
            raise ValueError(f'rename gives two columns the name "{name}". Choose another name for one of them.')
        if not all(value.strip() for value in self.positive):
            raise ValueError('positive contains "", but a missing label is neither a click nor a non-click. Remove "".')
        absent = set(map(label_key, self.missing))
        if both := [value for value in self.positive if label_key(value) in absent]:
            raise ValueError(f'"{both[0]}" is in both positive and missing. Remove it from one of them.')

    def _check_files(self) -> None:
        """Check that the log has either three splits or `files` with a split."""
        splits = [name for name in ("train", "valid", "test") if getattr(self, name)]
        for key in (*splits, *(["files"] if self.files else [])):
            if "" in (getattr(self, key) if isinstance(getattr(self, key), tuple) else ()):
                raise ValueError(f'{key} contains "". Write a path, a glob or a folder, such as ".".')
        if not self.files and len(splits) < 3:
            raise ValueError(
                'reader = "table" needs train, valid and test, or files and split = { by = "time", ... } or '
                'split = { by = "random", ... }.'
            )
        if self.files and splits:
            raise ValueError(f"files and {splits[0]} contradict each other. Remove files, or train, valid and test.")
        if self.files and isinstance(self.split, str):
            raise ValueError(
                'files needs a split, for example split = { by = "time", valid = "1d", test = "1d" } or '
                'split = { by = "random", valid = 0.1, test = 0.1 }.'
            )
        if not self.files and not isinstance(self.split, str):
            raise ValueError("split needs files = [...] instead of train, valid and test.")
        if isinstance(self.split, SplitByTime) and not self.time:
            raise ValueError('split = { by = "time" } needs time = "...", the column with the time of each row.')


# The keys that only reader = "table" uses.
TABLE_KEYS = (
    *(
        "files",
        "train",
        "valid",
        "test",
        "delimiter",
        "quote",
        "positive",
        "time",
        "weight",
        "unit",
        "request",
        "position",
    ),
    *("rename", "context", "candidate", "numeric", "columns"),
)


def with_data_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Return a stored [data] section in which missing keys have the defaults of the version that wrote it."""
    if document.get("reader") != "table":
        return document
    return {"clip_quantile": 0.0, "missing_number": "mean"} | document


def first_difference(a: Data, b: Data) -> tuple[str, Any, Any] | None:
    """Return the first key in which two sections differ, with both values, or None if they describe the same log.

    A key that is not set has its default value. `clip_quantile` and `missing_number` are compared only if the log has
    numeric fields.
    """
    before, after = effective_keys(a), effective_keys(b)
    different = (key for key in before | after if before.get(key) != after.get(key))
    return next(((key, before.get(key), after.get(key)) for key in different), None)


def effective_keys(data: Data) -> dict[str, Any]:
    """Return the keys of a section, including the defaults that depend on other keys."""
    keys: dict[str, Any] = msgspec.to_builtins(data)
    has_numbers = data.reader != "table" or any(kind_of(data, name) == "numeric" for name in field_names(data))
    keys["clip_quantile"] = data.clip_share if has_numbers else None
    keys["missing_number"] = ("vector" if data.has_missing_vector else "mean") if has_numbers else None
    specs = {spec["name"]: spec for spec in keys["fields"]}
    keys["fields"] = list(specs)
    settings = {name: {key: value for key, value in spec.items() if value is not None} for name, spec in specs.items()}
    return keys | {f"fields.{name}": spec for name, spec in settings.items()}


def label_key(value: Any) -> str | None:
    """Return the text that is compared to match a label, or None if the label is missing."""
    text = None if isinstance(value, float) and math.isnan(value) else token(value)
    if text is None:
        return None
    try:
        return token(float(text))
    except ValueError:
        return text.casefold()


def first_duplicate(names: Sequence[str]) -> str | None:
    """Return the first name that occurs more than once, or None."""
    return next((name for name in names if names.count(name) > 1), None)


class DataSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An experiment's file in which only [data] is validated. Building a model validates the other sections."""

    data: Data
    name: str = ""
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}


def read_data(path: Path) -> Data:
    """Return the [data] section of an experiment's file, or of a file that contains only this section.

    Raises:
        ValueError: If a key is unknown or a value is out of range. The message names the file and the key.
    """

    def to_data(document: dict[str, Any]) -> Data:
        data = to_struct(document, DataSection).data
        check_data_keys(data, document["data"])
        return data

    return read_toml(path, to_data)
