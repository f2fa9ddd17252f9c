"""Keys of a TOML file that have no effect because of its other keys, or that contradict them.

A TOML file with such a key is rejected. The structs themselves accept it, because logs and runs of older versions may
have it. Keys of [model] only cause a warning, because published recipes contain some that have no effect.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from contract.schema import TIME_TRANSFORMS
from model.toml_text import either, toml_text

if TYPE_CHECKING:
    from model.data_config import Data
    from model.experiment_config import Training

# The readers of logs that are published as one file, which `split` and `split_seed` divide.
SPLIT_READERS = ("avazu", "criteo", "movielens_1m")


def check_data_keys(data: "Data", given: Mapping[str, Any]) -> None:
    """Check that every key of a [data] section has an effect.

    Args:
        data: The section.
        given: The keys that the TOML file contains, including keys with their default values.

    Raises:
        ValueError: If a key has no effect, or contradicts another key.
    """
    for key, reason in unused_in_data(data):
        if key in given:
            raise ValueError(f"[data]: {key} has no effect {reason}")
    for spec, entry in zip(data.fields, given.get("fields", ()), strict=True):
        kind = kind_of(data, spec.name)
        for message in conflicts_of_field(data, kind, entry):
            raise ValueError(f'[[data.fields]]: field "{spec.name}": {message}')
    for message in columns_of_two_kinds(data):
        raise ValueError(f"[[data.fields]]: {message}")


def check_training_keys(training: "Training", given: Mapping[str, Any]) -> None:
    """Check that every key of a [training] section has an effect. The arguments are like those of check_data_keys().

    Raises:
        ValueError: If a key has no effect.
    """
    if "ema_min_steps" in given and not training.ema_half_life:
        raise ValueError(
            "[training]: ema_min_steps has no effect without an average of the weights. Set ema_half_life, or remove "
            "ema_min_steps."
        )


def unused_in_data(data: "Data") -> Iterator[tuple[str, str]]:
    """Yield each key of [data] that has no effect with the section's other keys, and why."""
    is_split_here = data.reader in SPLIT_READERS
    if isinstance(data.split, str) and not is_split_here:
        yield "split", f'with reader = "{data.reader}" and separate files for train, valid and test. Remove it.'
    if not (is_split_here and data.split == "row"):
        only = f'It belongs to split = "row" of reader = {quoted(SPLIT_READERS)}.'
        instead = ' Write seed in split = { by = "random", ... } instead.' if data.reader == "table" else ""
        yield "split_seed", f"here. {only}{instead or ' Remove it.'}"
    files = [file for value in (data.files, data.train, data.valid, data.test) for file in listed(value)]
    if files and all(file.rstrip("/").endswith(".parquet") for file in files):
        for key in ("delimiter", "quote", "columns"):
            yield key, "on parquet files. It belongs to text files (.csv, .tsv, .txt). Remove it."
    if data.reader == "table" and not any(kind_of(data, name) == "numeric" for name in field_names(data)):
        for key in ("clip_quantile", "missing_number"):
            yield key, "without numeric fields. Remove it, or list the fields in numeric."
    sources = {spec.name: spec.source for spec in data.fields}
    is_read = data.time in {sources.get(name) or name for name in field_names(data)}
    if not is_read and (isinstance(data.split, str) or tag_of(data.split) != "time"):
        yield "time", 'without split = { by = "time", ... }, because no field reads the column. Remove it.'
    if data.vocabulary:
        yield "min_count", "with vocabulary, because no tokens are counted. Remove one of them."


def conflicts_of_field(data: "Data", kind: str | None, entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each key of a [[data.fields]] entry that has no effect or contradicts another key.

    Args:
        data: The [data] section.
        kind: The field's kind, or None if only the reader knows it.
        entry: The entry in the TOML file.
    """
    name, transform = entry["name"], entry.get("transform")
    for side, names in (("context", data.context), ("candidate", data.candidate)):
        if name in names and entry.get("side", side) != side:
            yield f'it is listed in {side}, but side = "{entry["side"]}" here. Remove one of them.'
    if name in data.numeric and entry.get("kind") == "categorical":
        yield 'it is listed in numeric, but kind = "categorical" here. Remove one of them.'
    if kind == "numeric" and transform not in (None, "none", "log1p"):
        yield f'transform = "{transform}" produces a category. Remove it, or set kind = "categorical".'
    if kind == "categorical" and transform == "log1p":
        yield 'transform = "log1p" is for numeric fields. Set kind = "numeric", or use "log_square".'
    if transform == "none" and data.reader == "table":
        yield 'transform = "none" has no effect with reader = "table", which has no transforms. Remove it.'
    if "timezone" in entry and transform not in TIME_TRANSFORMS:
        yield f"timezone has no effect without a time transform. Set transform = {quoted(TIME_TRANSFORMS)}."
    if "min_count" in entry and kind == "numeric":
        yield 'min_count has no effect on a numeric field. Remove it, or set kind = "categorical".'
    if "min_count" in entry and data.vocabulary:
        yield "min_count has no effect with vocabulary, because no tokens are counted. Remove one of them."
    yield from conflicts_of_pseudonym(data, kind, entry)


def conflicts_of_pseudonym(data: "Data", kind: str | None, entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each key that contradicts the key pseudonym of a [[data.fields]] entry."""
    if "pseudonym" not in entry:
        return
    if kind == "numeric":
        yield 'pseudonym is only for categorical fields. Remove it, or set kind = "categorical".'
    if (transform := entry.get("transform")) not in (None, "none"):
        yield f'pseudonym cannot be combined with transform = "{transform}". Remove one of them.'
    if data.vocabulary:
        yield "pseudonym cannot be combined with vocabulary, whose tokens are raw values. Remove one of them."


def columns_of_two_kinds(data: "Data") -> Iterator[str]:
    """Yield a message for each column that one field reads as a number and another as text.

    A client sends one value for both fields. A string is not a number, and the token of a number can differ from the
    string in the log: 1.5 instead of 1.50.
    """
    specs = {spec.name: spec for spec in data.fields}
    number_of, text_of = dict[str, str](), dict[str, str]()
    for name in sorted(field_names(data)):
        spec = specs.get(name)
        column, transform = (spec.source or name, spec.transform) if spec else (name, None)
        if kind_of(data, name) == "numeric" or transform == "log_square":
            number_of[column] = name
        elif transform not in TIME_TRANSFORMS:
            text_of[column] = name
    for column in number_of.keys() & text_of.keys():
        yield (
            f'field "{number_of[column]}" reads the column "{column}" as a number, and field "{text_of[column]}" reads '
            f'it as text. Add a copy of the column to the log, or set transform = "log_square" in "{text_of[column]}".'
        )


def kind_of(data: "Data", name: str) -> str | None:
    """Return the kind of a field, or None if only the reader of a published log knows it."""
    kinds = [spec.kind for spec in data.fields if spec.name == name and spec.kind is not None]
    if kinds or data.reader != "table":
        return kinds[0] if kinds else None
    return "numeric" if name in data.numeric else "categorical"


def field_names(data: "Data") -> set[str]:
    """Return the names of all fields that the section declares."""
    return {*data.context, *data.candidate, *(spec.name for spec in data.fields)}


def unused_in_model(config: msgspec.Struct) -> list[str]:
    """Return a message for each key of a model that differs from its default but has no effect."""
    keys, defaults = msgspec.structs.asdict(config), msgspec.structs.asdict(type(config)())

    def is_off(key: str) -> bool:
        return key in keys and not keys[key]

    # With MaskNet's structure = "parallel", mlp_dropout also applies to the blocks.
    no_mlp, is_serial = is_off("mlp") and "structure" not in keys, keys.get("structure") == "serial"
    rules = [
        ("mlp_dropout", no_mlp, "mlp = []"),
        ("mlp_batch_norm", no_mlp and not keys.get("afn"), "mlp = []"),
        ("afn_dropout", is_off("afn"), "afn = []"),
        ("temperature", is_off("regulation"), "regulation = false"),
        ("gate", is_off("context1") and is_off("context2"), "context1 = [] and context2 = []"),
        *((key, is_serial, 'structure = "serial"') for key in ("blocks", "block_width", "mlp_batch_norm")),
    ]
    return [
        f"model.{key} = {toml_text(keys[key])} has no effect with {reason}. Remove it, or change {reason}."
        for key, is_unused, reason in rules
        if is_unused and keys.get(key) != defaults.get(key)
    ]


def quoted(names: Sequence[str]) -> str:
    """Return names as alternatives in a TOML file."""
    return either(map(toml_text, names))


def tag_of(struct: msgspec.Struct) -> str:
    """Return the value of the key that selects this struct, such as "time" of a split by time."""
    return str(struct.__struct_config__.tag)


def listed(value: str | Sequence[str]) -> Sequence[str]:
    """Return the files of a key, which may be one file or a list."""
    return ([value] if value else []) if isinstance(value, str) else value
