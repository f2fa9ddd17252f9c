"""The fields of a model: their order, kind and side."""

import hashlib
import math
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

Side = Literal["context", "candidate"]
Kind = Literal["categorical", "numeric"]
# Makes a token of a number. log_square: floor(log(x)^2) above 2, below it "SP" and the integer.
Transform = Literal["log_square"]
Attention = Literal["full", "request"]  # whom a context field attends to: see model/experiment_config.py

# A name becomes a file name and a part of a Redis key: nothing that could leave a folder or break a key.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input of the model.

    mean, std: normalise a numeric field and mean nothing for a categorical one. seen: the least and the largest number
    of train; beyond them a model was never told what to say.
    missing: values that mean that there is none, as "-1" does in some logs. transform: of a categorical field that is
    sent as a number. What a field does not have is absent from its JSON: its fingerprint stays when the contract grows.
    """

    name: str
    side: Side
    kind: Kind = "categorical"
    mean: float = 0.0
    std: float = 1.0
    missing: tuple[str, ...] | UnsetType = UNSET
    transform: Transform | UnsetType = UNSET
    seen: tuple[float, float] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"field name {self.name!r}: use 1 to 64 letters, digits, '_', '-' or '.', the first no '-' or '.'"
            )
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"field {self.name!r}: mean {self.mean} and std {self.std} must be finite, std above 0")
        if self.seen is not UNSET and not -math.inf < self.seen[0] <= self.seen[1] < math.inf:
            raise ValueError(f"field {self.name!r}: seen {self.seen} must be a finite range, the smaller number first")
        if self.transform is not UNSET and self.kind == "numeric":
            raise ValueError(f"field {self.name!r}: transform makes a category of a number: kind is categorical then")


class FeatureSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields in the order of the user's experiment.

    The columns of an id matrix are the categorical fields in this order, the columns of a value
    matrix the numeric ones.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(f.name for f in self.fields).items() if count > 1]
        if twice:
            raise ValueError(f"field {twice[0]!r} appears twice: give every field a name of its own")
        for side in ("context", "candidate"):
            if not any(f.side == side and f.kind == "categorical" for f in self.fields):
                raise ValueError(f"no categorical {side} field: a schema needs at least one on either side")

    def select(self, kind: Kind, side: Side | None = None) -> tuple[Field, ...]:
        """The fields of one kind, of one side or of both, in schema order."""
        return tuple(f for f in self.fields if f.kind == kind and side in (None, f.side))

    def in_serving_order(self) -> tuple[Field, ...]:
        """Context, then candidate; on either side categorical, then numeric: the fields of a serving graph."""
        sides: tuple[Side, Side] = ("context", "candidate")
        return tuple(f for side in sides for f in (*self.select("categorical", side), *self.select("numeric", side)))

    def fingerprint(self) -> str:
        """Sha256 over the schema's canonical JSON: two models with one fingerprint read the same input."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def read_schema(path: Path) -> FeatureSchema:
    """Raises ValueError, with the file's name, for anything that is not a schema."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=FeatureSchema)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path.name}: {error}") from error


def write_schema(schema: FeatureSchema, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(schema)) + b"\n")
