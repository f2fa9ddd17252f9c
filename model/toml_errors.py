"""The message for a TOML file that does not fit its struct: the key, its value, what is valid, and the fix.

msgspec reports an error and its location only as an English message. All code that depends on its wording is in
explain() and path_of(). The rest of our message comes from the document and from the struct's types.
"""

import copy
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect

from model.toml_text import (
    LARGEST_INT,
    bare,
    describe,
    did_you_mean,
    either,
    keys_of,
    structs_of,
    tags_of,
    toml_key,
    toml_text,
)

Path = tuple[str | int, ...]

UNKNOWN_KEY = "Object contains unknown field"
AT = re.compile(r" - at `\$((?:\.\w+|\[\d+\]|\[\.\.\.\])*)`$")
PATH_PART = re.compile(r"\.(\w+)|\[(\d+)\]|\[\.\.\.\]")
IN_DICT = "[...]"  # stands for the key of a dict, which msgspec does not name
MAX_TYPES = 3  # if more of the other types have a key, the message does not name them


@dataclass(frozen=True)
class Location:
    """A value in a document.

    Attributes:
        path: The keys and positions that lead to the value.
        value: The value.
        type: What the value must be.
        parent: The table or list that contains the value. None for the document itself.
    """

    path: Path
    value: Any
    type: inspect.Type
    parent: "Location | None" = None

    @property
    def name(self) -> str:
        """The path, such as data.split.by or model.mlp[0], or the entry of a list of tables and its key."""
        if self.parent is not None and self.parent.is_entry:
            return f"{self.parent.table}: {toml_key(str(self.path[-1]))}"
        parts = [f"[{part}]" if isinstance(part, int) else f".{toml_key(part)}" for part in self.path]
        return "".join(parts).removeprefix(".")

    @property
    def is_entry(self) -> bool:
        """Whether the value is one of a list of tables."""
        return isinstance(self.value, dict) and bool(self.path) and isinstance(self.path[-1], int)

    @property
    def table(self) -> str:
        """The name of the table at this location, for the beginning of a message."""
        struct = resolve(self.type, self.value)
        if not self.path:
            return "the file"
        if isinstance(self.path[-1], int):
            entry = f"[[{'.'.join(map(str, self.path[:-1]))}]] entry {self.path[-1] + 1}"
            return f"{entry} ({toml_text(self.value['name'])})" if "name" in self.value else entry
        name = f"[{self.name}]" if len(self.path) == 1 else self.name
        if isinstance(struct, inspect.StructType) and struct != bare(self.type):  # one of several structs
            return f"{name} with {tags_of([struct])}"
        return name


def explain(error: msgspec.ValidationError, document: dict[str, Any], struct: type[msgspec.Struct]) -> str:
    """Return the message for a document that msgspec.convert() rejected.

    Args:
        error: The error.
        document: The document.
        struct: The type to which the document should be converted.
    """
    here = locate(error, document, struct)
    if isinstance(error.__cause__, ValueError):  # from the struct's own checks
        return f"{here.table}: {error.__cause__}" if here.path else str(error.__cause__)
    if str(error).startswith(UNKNOWN_KEY):
        return unknown_key(here, locate_root(document, struct))
    if str(error).startswith("Object missing required field"):
        return missing_key(here)
    return f"{here.name} = {toml_text(here.value)} must be {describe(here.type)}.{way_out(here, document, struct)}"


def path_of(error: msgspec.ValidationError) -> Path:
    """Return the path in the error's message."""
    found = AT.search(str(error))
    return tuple(
        part[1] or (int(part[2]) if part[2] else IN_DICT) for part in PATH_PART.finditer(found[1] if found else "")
    )


def locate(error: msgspec.ValidationError, document: dict[str, Any], struct: type[msgspec.Struct]) -> Location:
    """Return the value that an error is about."""
    here = locate_root(document, struct)
    # msgspec quotes an unknown key verbatim, so a key of the document itself may look like the path of another table.
    if str(error).startswith(UNKNOWN_KEY) and unknown_keys(here):
        return here
    for part in path_of(error):
        here = step(here, part)
    return here


def locate_root(document: dict[str, Any], struct: type[msgspec.Struct]) -> Location:
    """Return the document itself."""
    return Location((), document, inspect.type_info(struct))


def step(here: Location, part: str | int) -> Location:
    """Return the location of a key's value in a table, or of an element in a list."""
    kind = resolve(here.type, here.value)
    if isinstance(kind, inspect.DictType):
        if part == IN_DICT:
            part = next(key for key, item in here.value.items() if not fits(item, kind.value_type))
        inner = kind.value_type
    elif isinstance(kind, inspect.ListType | inspect.VarTupleType):
        inner = kind.item_type
    elif isinstance(kind, inspect.StructType):
        inner = next(field.type for field in kind.fields if field.encode_name == part)
    else:  # the key that selects one of several structs
        inner = inspect.LiteralType(tuple(struct.tag for struct in structs_of(kind)))
    return Location((*here.path, part), here.value[part], inner, here)


def resolve(kind: inspect.Type, value: Any) -> inspect.Type:
    """Return the type without its metadata and, if it is a union, the alternative that a table or list belongs to."""
    kind = bare(kind)
    for choice in map(bare, kind.types) if isinstance(kind, inspect.UnionType) else ():
        if isinstance(value, list) and isinstance(choice, inspect.ListType | inspect.VarTupleType):
            return choice
        if isinstance(value, dict) and isinstance(choice, inspect.StructType) and is_selected(choice, value):
            return choice
    return kind


def is_selected(struct: inspect.StructType, table: dict[str, Any]) -> bool:
    """Return whether a table has the key and value that select this struct among others."""
    return struct.tag_field is None or struct.tag == table.get(struct.tag_field)


def fits(value: Any, kind: inspect.Type) -> bool:
    """Return whether an entry of a dict has the right type. In our files, entries are strings, lists or of any type."""
    kind = bare(kind)
    if isinstance(kind, inspect.ListType):
        return isinstance(value, list) and len(value) >= (kind.min_length or 0)
    return not isinstance(kind, inspect.StrType) or isinstance(value, str)


def unknown_key(here: Location, root: Location) -> str:
    """Return the message for a table with a key that it must not have."""
    struct = resolve(here.type, here.value)
    assert isinstance(struct, inspect.StructType)
    keys, key = keys_of(struct), unknown_keys(here)[0]
    others = [other for other in structs_of(here.type) if key in keys_of(other)]
    owners = [table for table, names in tables(root) if key in names]
    if owners and not owners[0]:
        fix = " It belongs at the top of the file, before the first section."
    elif owners:
        fix = f" It belongs in {either(owners)}."
    elif 0 < len(others) <= MAX_TYPES:
        fix = f" It is a key of {tags_of(others)}."
    else:
        fix = did_you_mean(key, keys) or " Remove it."
    return f"{here.table} has no key {toml_text(key)}.{fix} Its keys are {', '.join(keys)}."


def unknown_keys(here: Location) -> list[str]:
    """Return the keys of a table that it must not have."""
    struct = resolve(here.type, here.value)
    return [key for key in here.value if isinstance(struct, inspect.StructType) and key not in keys_of(struct)]


def tables(here: Location) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the keys of a table and of all tables in it. The name of the file itself is ""."""
    struct = resolve(here.type, here.value)
    assert isinstance(struct, inspect.StructType)
    yield f"[{here.name}]" if here.path else "", keys_of(struct)
    for field in struct.fields:
        value = here.value.get(field.encode_name)
        inner = resolve(field.type, value if isinstance(value, dict) else {})
        place = Location((*here.path, field.encode_name), value if isinstance(value, dict) else {}, inner)
        if isinstance(inner, inspect.StructType):
            yield from tables(place)
        elif isinstance(inner, inspect.VarTupleType):
            for entry in structs_of(inner.item_type):
                yield f"[[{place.name}]]", keys_of(entry)


def missing_key(here: Location) -> str:
    """Return the message for a table without a required key."""
    struct = resolve(here.type, here.value)
    if not isinstance(struct, inspect.StructType):  # the key that selects one of several structs
        structs = structs_of(here.type)
        return f'{here.table} needs the key "{structs[0].tag_field}". Add {tags_of(structs)}.'
    field = next(field for field in struct.fields if field.required and field.encode_name not in here.value)
    name, inner = field.encode_name, bare(field.type)
    if isinstance(inner, inspect.StructType):
        required = " and ".join(entry.encode_name for entry in inner.fields if entry.required)
        return f"{here.table} needs a section [{name}]. Add it with its keys {required}."
    return f'{here.table} needs the key "{name}". Add {name} = ..., with {describe(field.type)}.'


def way_out(here: Location, document: dict[str, Any], struct: type[msgspec.Struct]) -> str:
    """Return what to write instead of a wrong value, with a space before it, or "" if this is not obvious."""
    kind = resolve(here.type, here.value)
    parts = [bare(part) for part in kind.types] if isinstance(kind, inspect.UnionType) else [kind]
    if all(isinstance(part, inspect.StructType | inspect.DictType) for part in parts):
        return f" Begin a section [{here.name}], with one key per line."
    if isinstance(here.value, int) and abs(here.value) > LARGEST_INT:
        return f" It is too large. The largest number is {LARGEST_INT:,}."
    items = bare(kind.item_type) if isinstance(kind, inspect.ListType | inspect.VarTupleType) else None
    if isinstance(items, inspect.StructType | inspect.DictType):
        return f" Begin each entry with [[{here.name}]]."
    for candidate in candidates(here.value):
        if not is_wrong(with_value(document, here.path, candidate), here.path, struct):
            return f" Write {toml_text(candidate)}."
    if isinstance(here.value, str):
        texts = [value for part in parts if isinstance(part, inspect.LiteralType) for value in part.values]
        return did_you_mean(here.value, map(str, texts))
    return ""


def candidates(value: Any) -> Iterator[Any]:
    """Yield what a user may have meant: the value without quotes or with them, or a list with one element."""
    if isinstance(value, str):
        with suppress(tomllib.TOMLDecodeError):
            yield tomllib.loads(f"value = {value.strip().lower()}")["value"]
    yield [value]
    yield [[value]]
    if not isinstance(value, str | dict | list):
        yield toml_text(value)
        yield [toml_text(value)]


def is_wrong(document: dict[str, Any], path: Path, struct: type[msgspec.Struct]) -> bool:
    """Return whether the value at a path still has an error. The document's other errors are ignored."""
    try:
        msgspec.convert(document, struct)
    except msgspec.ValidationError as error:
        found = locate(error, document, struct).path
        return found[: len(path)] == path and not isinstance(error.__cause__, ValueError)
    return False


def with_value(document: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return a copy of the document with a different value at a path."""
    changed = copy.deepcopy(document)
    table: Any = changed
    for part in path[:-1]:
        table = table[part]
    table[path[-1]] = value
    return changed
