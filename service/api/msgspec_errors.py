"""Parse the messages of msgspec.ValidationError.

msgspec reports an error and its location only as an English message. All code that depends on the wording is in this
module. tests/service/api/test_msgspec_errors.py pins the wording, and fails if a version of msgspec changes it.
"""

import re
from dataclasses import dataclass

import msgspec

from contract.reader import shorten

Path = tuple[str | int, ...]

UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
MISSING_FIELD = re.compile(r"Object missing required field `(.*)`")
WRONG_TYPE = re.compile(r"Expected `.*`, got `(.*)`")
OUT_OF_BOUNDS = re.compile(r"Expected `.*` (of length )?[<>]=? .*")
WRONG_CHOICE = re.compile(r"Invalid enum value (.*)")  # the group is the repr() of the invalid value
PATH_PART = re.compile(r"\.(\w+)|\[(\d+)\]")
AT = " - at `$"
IN_DICT = "[...]"  # stands for the key of a dict, which msgspec does not name
MAX_MESSAGE_CHARS = 200

# Maps msgspec's names of JSON types to the names in our messages.
JSON_TYPES = {
    "array": "a list",
    "object": "an object",
    "str": "a string",
    "int": "an integer",
    "float": "a decimal number",
    "bool": "a boolean",
}


@dataclass(frozen=True)
class InvalidValue:
    """The content of a ValidationError.

    Attributes:
        path: Field names and list positions that lead to the value. For a value in a dict, those that lead to the dict.
        unknown_field: Name of a field that the object at `path` must not have.
        missing_field: Name of a field that the object at `path` must have.
        got: What was found, for example "a list". None if msgspec does not report it.
        message: msgspec's message, for an error that the other attributes do not describe. None if the value has the
            wrong type or is out of bounds, because then it is enough to say what was expected.
    """

    path: Path
    unknown_field: str | None = None
    missing_field: str | None = None
    got: str | None = None
    message: str | None = None


def parse_validation_error(error: msgspec.ValidationError) -> InvalidValue:
    """Parse the message of `error`. A message in an unknown format is returned unchanged."""
    text = str(error)
    # The client chooses this name, which may look like a path. Only the top-level object forbids unknown fields, so
    # msgspec adds no path to this message.
    if unknown := UNKNOWN_FIELD.fullmatch(text):
        return InvalidValue((), unknown_field=unknown[1])
    # Split at the last occurrence, because the message before it may quote a value that looks like a path.
    message, found, at = text.rpartition(AT)
    if not found:
        message, at = text, ""
    at = at.partition(IN_DICT)[0]
    path = tuple(name or int(index) for name, index in PATH_PART.findall(at))
    if missing := MISSING_FIELD.fullmatch(message):
        return InvalidValue(path, missing_field=missing[1])
    if wrong_type := WRONG_TYPE.fullmatch(message):
        return InvalidValue(path, got=JSON_TYPES.get(wrong_type[1], wrong_type[1]))
    if wrong_choice := WRONG_CHOICE.fullmatch(message):
        return InvalidValue(path, got=shorten(wrong_choice[1]))
    if OUT_OF_BOUNDS.fullmatch(message):
        return InvalidValue(path)
    return InvalidValue(path, message=shorten(message, MAX_MESSAGE_CHARS))


def json_path(path: Path) -> str:
    """Return a path as a JSON path: ("candidates", 3, "id") becomes "$.candidates[3].id"."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
