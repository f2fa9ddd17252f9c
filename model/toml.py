"""Reading a TOML file as a typed struct. A misspelled key is an error instead of being ignored."""

import codecs
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, inspect

from model.toml_errors import explain, locate, with_value
from model.toml_text import MAX_VALUE_CHARS, bare, did_you_mean

Positive = Annotated[int, Meta(gt=0, le=2**63 - 1)]  # the largest integer that torch accepts
Rate = Annotated[float, Meta(ge=0, lt=1)]
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

SYNTAX_ERROR = re.compile(r"(.*) \(at line (\d+), column (\d+)\)")


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
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode()  # some editors add a byte order mark
    except FileNotFoundError as error:
        hint = did_you_mean(path.name, (file.name for file in path.parent.glob("*.toml")))
        raise ValueError(f"{path}: no such {kind} file.{hint or ' Check the path.'}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}. Specify the {kind}'s TOML file.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    try:
        return convert(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}{syntax_error(str(error), text)}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: lists or tables are nested too deeply. Remove brackets.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def syntax_error(message: str, text: str) -> str:
    """Return the line number of a syntax error, the line, and what is wrong, to be appended to the file's name."""
    found = SYNTAX_ERROR.fullmatch(message)
    if not found:
        hint = " Complete the last line." if "end of document" in message else ""
        return f": is not valid TOML: {message}.{hint}"
    line = text.split("\n")[int(found[2]) - 1].strip()[:MAX_VALUE_CHARS]
    return (
        f":{found[2]}: {line!r} is not valid TOML: {found[1]} (column {found[3]}). Text needs quotes, and each key may "
        "occur once in its section."
    )


def to_struct(document: dict[str, Any], struct: type[S]) -> S:
    """Return the struct that a TOML file's tables describe. A whole number may be written as 10.0.

    Raises:
        ValueError: If a key is unknown or missing, or a value is wrong. The message says what is valid instead.
    """
    try:
        return msgspec.convert(document, struct)
    except msgspec.ValidationError as error:
        wrong = locate(error, document, struct)
        if (
            isinstance(wrong.value, float)
            and wrong.value.is_integer()
            and isinstance(bare(wrong.type), inspect.IntType)
        ):
            return to_struct(with_value(document, wrong.path, int(wrong.value)), struct)
        raise ValueError(explain(error, document, struct)) from error
