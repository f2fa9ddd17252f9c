"""The text of values and types in the messages about TOML files."""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from difflib import get_close_matches
from typing import Any

from msgspec import inspect

LARGEST_INT = 2**63 - 1  # the largest whole number in a TOML file; messages do not mention it as a bound
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
MAX_VALUE_CHARS = 100
MAX_TAGS = 4  # the tables of a union with more structs than this are not listed


def toml_key(key: str) -> str:
    """Return a key as it is written in a TOML file."""
    return key if BARE_KEY.fullmatch(key) else toml_value(key)


def toml_text(value: Any) -> str:
    """Return a value as it is written in a TOML file. A long value is cut off."""
    text = toml_value(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}..."


def toml_value(value: Any) -> str:
    """Return a value as it is written in a TOML file, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{toml_key(key)} = {toml_value(item)}' for key, item in value.items())} }}"
    return str(value)


def toml_document(document: Mapping[str, Any]) -> str:
    """Return the text of a TOML file. A table inside a section is written on one line."""
    sections = {name: section for name, section in document.items() if isinstance(section, dict)}
    lines = key_lines({key: value for key, value in document.items() if key not in sections})
    for name, section in sections.items():
        lines += ["", f"[{toml_key(name)}]", *key_lines(section)]
    return "\n".join(lines) + "\n"


def key_lines(section: Mapping[str, Any]) -> list[str]:
    """Return the lines of a section of a TOML file."""
    return [f"{toml_key(key)} = {toml_value(value)}" for key, value in section.items()]


def describe(kind: inspect.Type, many: bool = False) -> str:
    """Return a description of the values that a type accepts, such as "a whole number, 1 or more".

    Args:
        kind: The type.
        many: Whether to use the plural, as in "a list of whole numbers, each 1 or more".
    """
    if isinstance(kind, inspect.Metadata):
        examples = [toml_text(example) for example in (kind.extra_json_schema or {}).get("examples", [])]
        return f"{describe(kind.type, many)}{f', such as {either(examples)}' if examples else ''}"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        noun = "whole number" if isinstance(kind, inspect.IntType) else "number"
        limits = bounds(kind)
        if many:
            return f"{noun}s{f', each {limits}' if limits else ''}"
        return f"a {noun}{f', {limits}' if limits else ''}"
    if isinstance(kind, inspect.LiteralType):
        return f"{'values ' if many else ''}{either(map(toml_text, kind.values))}"
    if isinstance(kind, inspect.UnionType):
        return describe_union(kind, many)
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        least = f", at least {kind.min_length}" if kind.min_length else ""
        return f"{'lists' if many else 'a list'} of {describe(kind.item_type, many=True)}{least}"
    if isinstance(kind, inspect.StructType | inspect.DictType):
        return "tables" if many else "a table"
    if isinstance(kind, inspect.StrType):
        return "strings in quotes" if many else "text in quotes"
    return {inspect.BoolType: "true or false", inspect.AnyType: "values" if many else "a value"}[type(kind)]


def describe_union(kind: inspect.UnionType, many: bool) -> str:
    """Return a description of a union. Structs are named by their tags. None is left out, because TOML has no null."""
    structs = structs_of(kind)
    texts: list[str] = []
    for part in kind.types:
        if isinstance(part, inspect.LiteralType):
            texts += map(toml_text, part.values)
        elif bare(part) not in structs and not isinstance(part, inspect.NoneType):
            texts.append(describe(part, many))
    if structs:
        table = "tables" if many else "a table"
        texts.append(f"{table} with {tags_of(structs)}" if len(structs) <= MAX_TAGS else table)
    return either(texts)


def bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    """Return the bounds of a number, such as "more than 0 and less than 1", or ""."""
    ge, gt, le, lt = kind.ge, kind.gt, kind.le, kind.lt
    if isinstance(kind, inspect.IntType) and gt is not None:
        ge, gt = gt + 1, None
    if le == LARGEST_INT:
        le = None
    if ge is not None and le is not None:
        return f"from {number(ge)} to {number(le)}"
    limits = [f"{number(ge)} or more" if ge is not None else "", f"more than {number(gt)}" if gt is not None else ""]
    limits += [f"at most {number(le)}" if le is not None else "", f"less than {number(lt)}" if lt is not None else ""]
    return " and ".join(filter(None, limits))


def number(value: float) -> str:
    """Return a bound without the decimals of a whole number."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def tags_of(structs: Iterable[inspect.StructType]) -> str:
    """Return the keys that select these structs, such as `by = "time" or by = "random"`."""
    return either(f"{struct.tag_field} = {toml_text(struct.tag)}" for struct in structs)


def either(texts: Iterable[str]) -> str:
    """Return strings as alternatives: "a, b or c"."""
    *first, last = texts
    return f"{', '.join(first)} or {last}" if first else last


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question about the closest name, with a space before it, or "" if no name is close."""
    by_lower = {choice.lower(): choice for choice in names}
    close = get_close_matches(name.lower(), by_lower, 1)
    return f' Did you mean "{by_lower[close[0]]}"?' if close else ""


def bare(kind: inspect.Type) -> inspect.Type:
    """Return a type without its metadata."""
    return bare(kind.type) if isinstance(kind, inspect.Metadata) else kind


def structs_of(kind: inspect.Type) -> list[inspect.StructType]:
    """Return the structs in a union, or the struct itself."""
    kind = bare(kind)
    choices = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return [choice for choice in map(bare, choices) if isinstance(choice, inspect.StructType)]


def keys_of(struct: inspect.StructType) -> list[str]:
    """Return the keys of a struct in a TOML file, with the key that selects it first."""
    return [*filter(None, [struct.tag_field]), *(field.encode_name for field in struct.fields)]
