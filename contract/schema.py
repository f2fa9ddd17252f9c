"""The fields of a model: their order, kind and side."""

import hashlib
import math
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from contract.timestamps import time_zone

Side = Literal["context", "candidate"]
Kind = Literal["categorical", "numeric"]
# Applied to a value before it is looked up or normalized (see contract/tokens.py). Numeric fields can use only log1p.
Transform = Literal["log_square", "log1p", "hour", "weekday", "day"]
TIME_TRANSFORMS = ("hour", "weekday", "day")
Pseudonym = Literal["hmac"]  # see contract/pseudonyms.py
Attention = Literal["full", "request"]  # what a context field attends to: see model/experiment_config.py

# A name becomes a file name and part of a Redis key, so it must not point outside the folder or break the key.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input of the model.

    Optional attributes that a field does not have are absent from its JSON. A schema's fingerprint therefore
    stays the same when a new attribute is added to the format.

    Attributes:
        mean: Mean with which a numeric field is normalized, after its transform. Has no effect on a categorical field.
        std: Standard deviation with which a numeric field is normalized, after its transform. Has no effect on a
            categorical field.
        missing: Values that mean "missing", such as "-1" in some logs.
        transform: Turns the numbers or timestamps of a categorical field into tokens, or the numbers of a numeric field
            into other numbers.
        seen: The smallest and the largest number that the model was trained with, before the transform. Numbers outside
            this range are clipped to it.
        source: The name in requests that the value is read from, if it differs from `name`. The JSON key is "from".
        timezone: The IANA time zone in which TIME_TRANSFORMS read a timestamp. The default is UTC.
        missing_vector: True if the model has a trained vector for a missing number. Otherwise, a missing number is
            replaced with the mean.
        pseudonym: "hmac" if each token is replaced with its HMAC before any lookup. Only for categorical fields without
            a transform.
    """

    name: str
    side: Side
    kind: Kind = "categorical"
    mean: float = 0.0
    std: float = 1.0
    missing: tuple[str, ...] | UnsetType = UNSET
    transform: Transform | UnsetType = UNSET
    seen: tuple[float, float] | UnsetType = UNSET
    source: str | UnsetType = msgspec.field(name="from", default=UNSET)
    timezone: str | UnsetType = UNSET
    missing_vector: bool | UnsetType = UNSET
    pseudonym: Pseudonym | UnsetType = UNSET

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"field name {self.name!r}: use 1 to 64 letters, digits, '_', '-' or '.', "
                "and do not start with '-' or '.'"
            )
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"field {self.name!r}: mean {self.mean} and std {self.std} must be finite, and std above 0"
            )
        if self.seen is not UNSET and not -math.inf < self.seen[0] <= self.seen[1] < math.inf:
            raise ValueError(
                f"field {self.name!r}: seen {self.seen} must be a finite range with the smaller number first"
            )
        if self.transform is not UNSET and (self.transform == "log1p") != (self.kind == "numeric"):
            kind = "numeric" if self.transform == "log1p" else "categorical"
            raise ValueError(f'field {self.name!r}: transform = "{self.transform}" needs kind = "{kind}"')
        if self.timezone is not UNSET and self.transform not in TIME_TRANSFORMS:
            raise ValueError(
                f"field {self.name!r}: timezone has no effect without an hour, weekday or day transform: set one"
            )
        if self.timezone is not UNSET:
            try:
                time_zone(self.timezone)
            except ValueError as error:
                raise ValueError(f"field {self.name!r}: {error}") from error
        if self.missing_vector is not UNSET and self.kind != "numeric":
            raise ValueError(f"field {self.name!r}: missing_vector is only for numeric fields: remove it")
        if self.source is not UNSET and not NAME.fullmatch(self.source):
            raise ValueError(f"field {self.name!r}: from = {self.source!r} is not a valid name")
        self._check_pseudonym()

    def _check_pseudonym(self) -> None:
        if self.pseudonym is not UNSET and (self.kind != "categorical" or self.transform is not UNSET):
            conflict = f'kind = "{self.kind}"' if self.transform is UNSET else f'transform = "{self.transform}"'
            raise ValueError(
                f'field {self.name!r}: pseudonym = "{self.pseudonym}" is only for categorical fields without a '
                f"transform, and this field has {conflict}: remove one of them"
            )

    @property
    def reads(self) -> str:
        """The name in requests that the field's value is read from."""
        return self.name if self.source is UNSET else self.source


class FeatureSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model's fields, in the order of the experiment.

    The columns of an id matrix are the categorical fields in this order. The columns of a value matrix are the numeric
    fields.

    Attributes:
        fields: The fields.
        pseudonym_key: The fingerprint of the key for pseudonyms. Like a field's optional attributes, it is absent from
            the JSON if no field has pseudonyms.
    """

    fields: tuple[Field, ...]
    pseudonym_key: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(f.name for f in self.fields).items() if count > 1]
        if twice:
            raise ValueError(f"field {twice[0]!r} appears twice: give every field a different name")
        for side in ("context", "candidate"):
            if not any(f.side == side and f.kind == "categorical" for f in self.fields):
                raise ValueError(f"no categorical {side} field: a schema needs at least one on each side")
        self._check_pseudonyms()

    def _check_pseudonyms(self) -> None:
        fields = [field for field in self.fields if field.pseudonym is not UNSET]
        if self.pseudonym_key is not UNSET and not fields:
            raise ValueError("pseudonym_key is set, but no field has pseudonyms: create the schema with ctr-prepare")
        for field in fields:
            # A request log must hold the pseudonym of a value, which another field could not read.
            others = [repr(f.name) for f in self.fields if f.reads == field.reads and f.name != field.name]
            if others:
                raise ValueError(
                    f"field {field.name!r} has pseudonyms of {field.reads!r}, which {', '.join(others)} also reads: "
                    "only one field can read a name with pseudonyms"
                )

    def select(self, kind: Kind, side: Side | None = None) -> tuple[Field, ...]:
        """Return the fields of one kind, on one side or on both, in schema order."""
        return tuple(f for f in self.fields if f.kind == kind and side in (None, f.side))

    def in_serving_order(self) -> tuple[Field, ...]:
        """Return the fields in the order of the serving graph: context before candidate, categorical before numeric."""
        sides: tuple[Side, Side] = ("context", "candidate")
        return tuple(f for side in sides for f in (*self.select("categorical", side), *self.select("numeric", side)))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the schema's JSON. Models with the same fingerprint read the same input."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def read_schema(path: Path) -> FeatureSchema:
    """Read a schema from a file. Raises ValueError with the file's name if it does not contain a schema."""
    try:
        schema = msgspec.json.decode(path.read_bytes(), type=FeatureSchema)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if schema.pseudonym_key is UNSET and any(field.pseudonym is not UNSET for field in schema.fields):
        raise ValueError(f"{path.name}: a field has pseudonyms, but pseudonym_key is missing: run ctr-prepare again")
    return schema


def write_schema(schema: FeatureSchema, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(schema)) + b"\n")
