"""Reading a TOML file as a typed struct: a misspelt key is an error, not a default."""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(gt=0, le=2**63 - 1)]  # torch takes no larger one
Rate = Annotated[float, Meta(ge=0, lt=1)]
T = TypeVar("T")


def read_toml(path: Path, convert: Callable[[dict[str, Any]], T], what: str = "experiment") -> T:
    """convert: makes of the file's tables what is wanted.

    Raises:
        ValueError: with the file's name, for one that is not there, is no TOML, or that `convert` refuses.
    """
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8)  # as some editors begin a file
        return convert(msgspec.toml.decode(text, type=dict[str, Any]))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such {what} file") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
