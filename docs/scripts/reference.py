"""Generate the configuration reference from the types that parse the settings and TOML files."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import NODEFAULT
from msgspec import inspect as types
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from model.data_config import Data, FieldSpec
from model.experiment_config import Experiment, Training
from model.experiments.sweep_config import Sweep
from model.zoo import MODELS
from service.collect.settings import CollectSettings
from service.settings import COLLECT_PREFIX, PREFIX, Settings

AnySettings = type[Settings] | type[CollectSettings]

HEADER = ("Key", "Type", "Default", "Bounds", "Meaning")
SETTINGS_HEADER = ("Variable", "Type", "Default", "Bounds", "Meaning")
LIMITS = ("ge", "gt", "le", "lt")
LARGEST_INT = 2**63 - 1  # The largest whole number in a TOML file. The reference does not list it as a bound.

# Every setting must be in exactly one group. Otherwise, the generator fails.
GROUPS: Mapping[str, Sequence[str]] = {
    "model": ("bundle", "store", "device", "device_strict"),
    "processes": ("host", "port", "workers", "threads", "slots", "drain_notice_ms", "drain_ms"),
    "vocabulary": (*("vocabulary", "redis_url", "redis_timeout_ms", "cache_tokens", "cache_bytes", "cache_unknown_s"),),
    "scheduling": (*("timeout_ms", "max_rows", "inline_ms", "max_queued_rows", "max_in_flight", "queue_target_ms"),),
    "requests": (
        *("strict", "max_candidates", "max_fields", "max_token_chars", "max_body_bytes", "max_buffered_bytes"),
    ),
    "connections": ("max_connections", "head_timeout_ms", "body_timeout_ms", "keep_alive_ms"),
    "access": ("api_keys_file", "admin_key_file", "admin_port", "docs"),
    "logs": (
        *("log_values", "request_log", "request_log_sample", "request_log_fields", "request_log_candidates"),
        *(
            "request_log_segment_s",
            "request_log_max_bytes",
            "request_log_queue_bytes",
            "request_log_hash",
            "request_log_salt_file",
        ),
        "pseudonym_key_file",
    ),
}
COLLECT_GROUPS: Mapping[str, Sequence[str]] = {
    "collect-events": ("folder", "max_bytes", "segment_s", "max_events", "max_skew_s"),
    "collect-server": (
        *("host", "port", "max_in_flight", "max_body_bytes", "max_buffered_bytes", "max_connections"),
        *("head_timeout_ms", "body_timeout_ms", "keep_alive_ms", "drain_notice_ms", "drain_ms"),
        *("api_keys_file", "docs"),
    ),
    "collect-redis": ("redis_url", "redis_stream", "redis_group", "redis_reclaim_s", "redis_delete"),
}
# Descriptions of keys, for docstrings that give only the symbol in the model's formula.
SYMBOLS: Mapping[str, str] = {
    "embedding": "Width of the embeddings",
    "blocks": "Number of blocks",
    "heads": "Number of attention heads",
    "attention": "Width of the attention",
    "layers": "Number of layers",
    "cross_layers": "Number of cross layers",
    "interaction_layers": "Number of interaction layers",
    "subspaces": "Number of subspaces",
    "order": "Highest order of the interactions",
    "neurons": "Number of logarithmic neurons",
    "temperature": "Temperature of the gates",
}
SYMBOL = re.compile(r"([A-Z]|[Tt]au)((?:, .*)?)\.")


@dataclass(frozen=True)
class Entry:
    """A row of the reference, which describes a setting or a key of a TOML file."""

    name: str
    type: str
    default: str
    bounds: str
    meaning: str

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells."""
        default = f"`{self.default}`" if self.default not in ("required", "not set") else self.default
        return f"`{self.name}`", self.type, default, self.bounds, self.meaning.replace("|", "\\|")


def configuration() -> dict[str, list[str]]:
    """Return the lines of each block in docs/configuration.md and docs/collect.md, by the block's name."""
    blocks = {
        f"settings-{group}": _table(SETTINGS_HEADER, [setting(name, settings) for name in names])
        for settings, groups in ((Settings, GROUPS), (CollectSettings, COLLECT_GROUPS))
        for group, names in _checked(groups, settings).items()
    }
    sections: dict[str, type[msgspec.Struct]] = {
        "data": Data,
        "fields": FieldSpec,
        "training": Training,
        "stec": MODELS["stec"][0],
        "sweep": Sweep,
    }
    blocks["keys-experiment"] = _table(HEADER, [entry for entry in keys(Experiment) if entry.name == "name"])
    blocks |= {f"keys-{name}": _table(HEADER, list(keys(struct))) for name, struct in sections.items()}
    blocks["keys-baselines"] = _baselines()
    return blocks


def setting(name: str, settings: AnySettings = Settings) -> Entry:
    """Return the entry of a `CTR_*` setting, given the name of its field."""
    field = settings.model_fields[name]
    return Entry(
        f"{PREFIX if settings is Settings else COLLECT_PREFIX}{name.upper()}",
        _settings_type(field.annotation),
        _default(field.default),
        _settings_bounds(field),
        _sentence(field.description or ""),
    )


def keys(struct: type[msgspec.Struct]) -> Iterator[Entry]:
    """Yield an entry for each key of a struct, in the order of its fields."""
    meanings = _meanings(struct)
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    for field in info.fields:
        default = "required" if field.required else _default(_value(field))
        meaning = _sentence(_description(field.type) or meanings.get(field.name, ""))
        if (symbol := SYMBOL.fullmatch(meaning)) and field.name in SYMBOLS:
            meaning = f"{SYMBOLS[field.name]} ({symbol[1]}){symbol[2]}."
        kind, bounds = _kind(field.type)
        yield Entry(field.encode_name, kind, default, bounds, meaning)


def without_meaning() -> set[str]:
    """Return the settings and keys without a description in the code."""
    entries = [setting(name, kind) for kind in (Settings, CollectSettings) for name in kind.model_fields]
    missing = {entry.name for entry in entries if not entry.meaning}
    structs: dict[str, type[msgspec.Struct]] = {
        "data": Data,
        "fields": FieldSpec,
        "training": Training,
        "sweep": Sweep,
        **{kind: config for kind, (config, _) in MODELS.items()},
    }
    for section, struct in structs.items():
        missing |= {f"{section}.{entry.name}" for entry in keys(struct) if not entry.meaning}
    return missing


def _checked(groups: Mapping[str, Sequence[str]], settings: AnySettings) -> Mapping[str, Sequence[str]]:
    listed = [name for names in groups.values() for name in names]
    if strangers := set(listed) ^ set(settings.model_fields):
        raise ValueError(f"{min(strangers)!r}: {__name__} and the settings differ. List every setting in one group")
    return groups


def _baselines() -> list[str]:
    lines: list[str] = []
    for name, (config, _) in MODELS.items():
        if name != "stec":
            lines += [f"### {name}", "", *_table(HEADER, list(keys(config))), ""]
    return lines[:-1]


def _table(header: Sequence[str], entries: Sequence[Entry]) -> list[str]:
    rows = [header, ["---"] * len(header), *(entry.cells() for entry in entries)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _settings_type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return _choices(get_args(annotation))
    parts = [part for part in get_args(annotation) if part is not NoneType] if _is_union(annotation) else [annotation]
    names = {Path: "path", SecretStr: "URL", str: "text", int: "whole number", float: "number", bool: "true or false"}
    return " or ".join(names[part] for part in parts)


def _is_union(annotation: Any) -> bool:
    return isinstance(annotation, UnionType)


def _settings_bounds(field: FieldInfo) -> str:
    limits = {name: getattr(limit, name) for limit in field.metadata for name in LIMITS if hasattr(limit, name)}
    return _bounds(*(limits.get(name) for name in LIMITS))


def _kind(kind: types.Type) -> tuple[str, str]:
    """Return the description of a TOML value's type, and its bounds."""
    if isinstance(kind, types.Metadata):
        return _kind(kind.type)
    if isinstance(kind, types.IntType | types.FloatType):
        le = None if kind.le == LARGEST_INT else kind.le
        ge, gt = (1, None) if isinstance(kind, types.IntType) and kind.gt == 0 else (kind.ge, kind.gt)
        return "whole number" if isinstance(kind, types.IntType) else "number", _bounds(ge, gt, le, kind.lt)
    if isinstance(kind, types.LiteralType):
        return _choices([f'"{value}"' for value in kind.values]), ""
    if isinstance(kind, types.UnionType):
        parts = [_kind(part) for part in kind.types if not isinstance(part, types.NoneType)]
        return " or ".join(name for name, _ in parts), "; ".join(bounds for _, bounds in parts if bounds)
    if isinstance(kind, types.VarTupleType | types.ListType):
        item, bounds = _kind(kind.item_type)
        least = f"at least {kind.min_length}" if kind.min_length else ""
        return f"list of {_plural(item)}", "; ".join(filter(None, (least, f"each {bounds}" if bounds else "")))
    if isinstance(kind, types.StructType) and kind.tag_field:
        *listed, last = (f"`{field.encode_name}`" for field in kind.fields)
        return f'table with `{kind.tag_field} = "{kind.tag}"`, {", ".join(listed)} and {last}', ""
    if isinstance(kind, types.StructType | types.DictType):
        return "table", ""
    names = {types.StrType: "text", types.BoolType: "true or false", types.AnyType: "any value"}
    return names[type(kind)], ""


def _plural(item: str) -> str:
    return {"text": "texts", "table": "tables", "whole number": "whole numbers", "any value": "values"}.get(item, item)


def _choices(values: Sequence[Any]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _bounds(ge: float | None, gt: float | None, le: float | None, lt: float | None) -> str:
    if ge is not None and le is not None:
        return f"{_number(ge)} to {_number(le)}"
    limits = ((">=", ge), (">", gt), ("<=", le), ("<", lt))
    return ", ".join(f"{sign} {_number(limit)}" for sign, limit in limits if limit is not None)


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def _value(field: types.Field) -> Any:
    return field.default if field.default is not NODEFAULT else field.default_factory()


def _default(value: Any) -> str:
    if value is None or value in ("", (), [], {}):
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _description(kind: types.Type) -> str:
    """Return the description in msgspec's Meta, for the type or for one of its alternatives."""
    if isinstance(kind, types.Metadata):
        described = (kind.extra_json_schema or {}).get("description", "")
        return str(described) or _description(kind.type)
    if isinstance(kind, types.UnionType):
        return next((text for part in kind.types if (text := _description(part))), "")
    return ""


def _meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return the field descriptions in the docstrings of a struct and its bases. Derived classes take precedence."""
    found: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        if issubclass(base, msgspec.Struct) and base is not msgspec.Struct and base.__doc__:
            found |= _explained(inspect.cleandoc(base.__doc__), struct.__struct_fields__)
    return found


def _explained(doc: str, fields: Sequence[str]) -> dict[str, str]:
    """Return a docstring's descriptions, which have the form `name: text` or `name, other: text`."""
    names = "|".join(sorted(map(re.escape, fields), key=len, reverse=True))
    begin = re.compile(rf"(?:^|(?<=[.;)] )|(?<=\n))\s*((?:{names})(?:,\s+(?:{names}))*)(?: \([^)]*\))?: ")
    found: dict[str, str] = {}
    marks = list(begin.finditer(doc))
    for number, mark in enumerate(marks):
        end = marks[number + 1].start() if number + 1 < len(marks) else len(doc)
        text = re.split(r"\n\s*\n|\n(?:Raises|Example|Examples|Note):", doc[mark.end() : end])[0]
        for name in re.split(r",\s+", mark[1]):
            found[name] = " ".join(text.split())
    return found


def _sentence(text: str) -> str:
    """Return the text with a capital letter at the start and a period at the end. An empty text stays empty."""
    text = " ".join(text.split()).rstrip(";,")
    if not text:
        return ""
    first = text if re.match(r"\w+_|`|CTR_", text) else text[0].upper() + text[1:]
    return first if first.endswith((".", "!", "?")) else f"{first}."
