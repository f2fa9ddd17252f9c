"""Reading a TOML file as a typed struct. A misspelled key is an error instead of being ignored."""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(gt=0, le=2**63 - 1)]  # the largest integer that torch accepts
Rate = Annotated[float, Meta(ge=0, lt=1)]
T = TypeVar("T")


def read_toml(path: Path, convert: Callable[[dict[str, Any]], T], kind: str = "experiment") -> T:
    """Read a TOML file and convert its tables.

    Args:
        path: The TOML file.
        convert: Converts the tables to the result. It raises ValueError if it does not accept them.
        kind: What the file contains, for the error about a missing file.

    Raises:
        ValueError: If the file is missing, is not valid TOML, or is rejected by `convert`. The message names the file.
    """
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8)  # some editors add a byte order mark
        return convert(msgspec.toml.decode(text, type=dict[str, Any]))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such {kind} file") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
