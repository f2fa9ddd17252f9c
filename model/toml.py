"""Reading a TOML file as a typed struct: a misspelled key is an error, not a default."""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(gt=0, le=2**63 - 1)]  # the largest integer that torch takes
Rate = Annotated[float, Meta(ge=0, lt=1)]
T = TypeVar("T")


def read_toml(path: Path, convert: Callable[[dict[str, Any]], T], kind: str = "experiment") -> T:
    """Return what `convert` makes of the file's tables.

    Args:
        path: The TOML file.
        convert: Makes the result from the tables. It raises ValueError for a table that it does not accept.
        kind: What the file holds, for the error about a missing file.

    Raises:
        ValueError: If the file is missing, is not valid TOML, or is not accepted. The message names the file.
    """
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8)  # some editors write a byte order mark
        return convert(msgspec.toml.decode(text, type=dict[str, Any]))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such {kind} file") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
