"""One data set of FuxiCTR's dataset_config.yaml as typed values.

FuxiCTR evaluates `dtype` and `feature_encoder` as Python code. This module evaluates nothing: a value that is not in
the lists below is an error.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml

from contract.schema import NAME, Field, Kind, Side, Transform
from contract.tokens import token
from model.data.readers.log import SPLITS
from model.data_config import first_duplicate

Value = TypeVar("Value")
Spec = dict[str, Any]

DTYPES = {name: name for name in ("str", "int", "float")}
FORMATS = {"csv": (".csv", ".csv.gz"), "parquet": (".parquet",)}
KINDS: dict[str, Kind] = {"categorical": "categorical", "numeric": "numeric"}
# The values of `source` in FuxiCTR's and BARS's configurations.
SIDES: dict[str, Side] = {
    "": "context",
    "user": "context",
    "context": "context",
    "item": "candidate",
    "ad": "candidate",
    "candidate": "candidate",
}
# NOTE[DIFF] FuxiCTR's convert_to_bucket does not change 1 and 2, so 1 gets the same token as 3, whose bucket is 1.
TRANSFORMS: dict[str, Transform] = {"convert_to_bucket": "log_square"}

DATASET_KEYS = {
    *("data_root", "data_format", "train_data", "valid_data", "test_data"),
    *("min_categr_count", "feature_cols", "label_col", "rebuild_dataset"),
}
FEATURE_KEYS = {
    *("name", "active", "dtype", "type", "source", "min_categr_count", "fill_na", "na_value", "normalizer"),
    *("preprocess", "remap", "vocab_size", "feature_encoder", "encoder"),
}
UNSUPPORTED_FORMATS = dict.fromkeys(("h5", "npz"), "Use the raw csv or parquet files.")
UNSUPPORTED_TYPES = {
    "sequence": "A field has one value. Write one element of the sequence, such as the last, to a separate column with "
    "type: categorical, or set active: false to leave the sequence out.",
    "embedding": "Set active: false.",
}
UNSUPPORTED_KEYS = {
    "share_embedding": "Here, every field has its own embedding. Remove the key.",
    "pretrained_emb": "Here, embeddings are trained from scratch. Remove the key.",
    "category_processor": "Write the bucket or the hash into the log as a column.",
    "embedding_dim": "Here, all embeddings have the width model.embedding. Remove the key.",
    "emb_output_dim": "Here, all embeddings have the width model.embedding. Remove the key.",
}
HOUR_FIX = 'Read raw Avazu with reader = "avazu", which creates hour_of_day, weekday and is_weekend.'
UNSUPPORTED_FUNCTIONS = {
    "copy_from": "Write the copy into the log as a column.",
    "convert_hour": HOUR_FIX,
    "convert_weekday": HOUR_FIX,
    "convert_weekend": HOUR_FIX,
}


@dataclass(frozen=True)
class Feature:
    """A column that is used as a field.

    Attributes:
        field: The corresponding field of this project.
        dtype: The type that FuxiCTR reads the column as: str, int or float.
        missing: Tokens that stand for a missing value.
        min_count: The feature's own min_count, or None to use the data set's.
        transform: The transform, or None if the value itself is the token.
    """

    field: Field
    dtype: str
    missing: tuple[str, ...]
    min_count: int | None
    transform: Transform | None


@dataclass(frozen=True)
class Dataset:
    """A data set of the configuration.

    Attributes:
        name: The data set's key.
        files: The file of each split (see SPLITS), relative to --data.
        label: The label column.
        min_count: A token in fewer rows than this gets the unknown id.
        features: The fields, in the configuration's order.
        left_out: Columns that are not used as features, because they are inactive or of type `meta`.
    """

    name: str
    files: dict[str, PurePosixPath]
    label: str
    min_count: int
    features: tuple[Feature, ...]
    left_out: tuple[str, ...]


def read_dataset(path: Path, name: str, candidate: tuple[str, ...], root: Path) -> Dataset:
    """Return one data set of a dataset_config.yaml.

    Args:
        path: The configuration.
        name: The data set's key.
        candidate: Features that belong to the candidate, regardless of their `source`.
        root: The data folder. Absolute paths must be inside it.

    Raises:
        ValueError: If anything is unsupported. The message names the file, data set, feature, key and value.
    """
    where = f"{path}: dataset {name!r}"
    spec = select_dataset(path, name)
    for key in sorted(spec.keys() - DATASET_KEYS):
        raise unsupported(where, key, spec[key], "Remove it if this does not change the meaning of the columns.")
    entries = spec.get("feature_cols")
    if not isinstance(entries, list) or not entries:
        raise unsupported(where, "feature_cols", entries, "Write a list of features.")
    columns = [column for entry in entries for column in expand_names(where, entry)]
    used = [column for column in columns if column.get("active", True) is not False and column.get("type") != "meta"]
    names = [column["name"] for column in used]
    if (duplicate := first_duplicate(names)) is not None:
        raise ValueError(f"{where}: feature {duplicate!r} occurs twice. Set active: false for one of them.")
    if unknown := set(candidate) - set(names):
        raise ValueError(f"{where}: --candidate {min(unknown)}: no such feature. Choose from {', '.join(names)}.")
    features = tuple(read_feature(where, column, column["name"] in candidate) for column in used)
    sides = {feature.field.side for feature in features if feature.field.kind == "categorical"}
    if "candidate" not in sides:
        raise ValueError(f"{where}: no categorical feature has source: item. List the ad's with --candidate A,B.")
    if "context" not in sides:
        raise ValueError(f"{where}: every categorical feature belongs to the candidate. Set source: user for one.")
    return Dataset(
        name,
        {split: read_path(where, f"{split}_data", spec, root) for split in SPLITS},
        read_label(where, spec),
        read_min_count(where, spec) or 1,
        features,
        left_out=tuple(column["name"] for column in columns if column not in used),
    )


def select_dataset(path: Path, name: str) -> Spec:
    """Return the keys and values of one data set in the YAML file."""
    try:
        datasets = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file. Specify FuxiCTR's dataset_config.yaml.") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(datasets, dict):
        raise ValueError(f"{path}: has no data sets. Specify FuxiCTR's dataset_config.yaml.")
    if not isinstance(datasets.get(name), dict) or not NAME.fullmatch(name):
        raise ValueError(f"{path}: has no dataset {name!r}. --dataset must be one of {', '.join(map(str, datasets))}.")
    return {str(key): value for key, value in datasets[name].items()}


def expand_names(where: str, column: Any) -> list[Spec]:
    """Return one specification for each name in an entry of feature_cols."""
    if not isinstance(column, dict) or not column.get("name"):
        raise unsupported(where, "feature_cols", column, "Every entry must be a mapping with a name.")
    names = column["name"] if isinstance(column["name"], list) else [column["name"]]
    return [{str(key): value for key, value in column.items()} | {"name": str(name)} for name in names]


def read_feature(where: str, column: Spec, candidate: bool) -> Feature:
    """Return one feature. If `candidate` is true, it belongs to the candidate, regardless of its `source`."""
    where = f"{where}: feature {column['name']!r}"
    # The type is checked first, because a sequence also has keys, such as `splitter`, that no other type has.
    kind = one_of(where, "type", column, KINDS, UNSUPPORTED_TYPES)
    check_feature_keys(where, column)
    dtype = one_of(where, "dtype", column, DTYPES)
    if kind == "numeric" and dtype == "str":
        raise unsupported(where, "dtype", dtype, "A numeric feature must be int or float.")
    side = "candidate" if candidate else one_of(where, "source", {"source": ""} | column, SIDES)
    # FuxiCTR 1 calls this na_value. FuxiCTR replaces empty values with it and excludes it from the vocabulary.
    fill_key = "fill_na" if "fill_na" in column else "na_value"
    try:
        field = Field(column["name"], side, kind)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    try:
        fill = token(column.get(fill_key))
    except ValueError as error:
        raise ValueError(f"{where}: {fill_key} {error}") from error
    missing = (fill,) if kind == "categorical" and fill is not None else ()
    return Feature(field, dtype, missing, read_min_count(where, column), read_transform(where, kind, column))


def check_feature_keys(where: str, column: Spec) -> None:
    """Check that every key of a feature is supported."""
    for key, value in column.items():
        if key in UNSUPPORTED_KEYS and value is not None:
            raise unsupported(where, key, value, UNSUPPORTED_KEYS[key])
        if key not in FEATURE_KEYS and key not in UNSUPPORTED_KEYS:
            raise unsupported(where, key, value, "Remove it if this does not change the meaning of the column.")
        if key in ("feature_encoder", "encoder") and value not in (None, "", "null", "None", "none"):
            raise unsupported(where, key, value, "Here, a field has a single embedding. Write null.")
        if key == "normalizer" and value not in (None, "StandardScaler"):
            raise unsupported(where, key, value, "Numbers are always scaled like that. Write StandardScaler.")


def read_transform(where: str, kind: Kind, column: Spec) -> Transform | None:
    """Return the equivalent of a feature's `preprocess`."""
    preprocess = column.get("preprocess")
    if not preprocess:
        return None
    function, _, argument = str(preprocess).partition("(")
    if kind == "categorical" and function in TRANSFORMS and argument.removesuffix(")") in ("", column["name"]):
        return TRANSFORMS[function]
    fix = UNSUPPORTED_FUNCTIONS.get(function, "Write its result into the log as a column.")
    raise unsupported(where, "preprocess", preprocess, fix)


def read_label(where: str, spec: Spec) -> str:
    """Return the name of the label column."""
    label = spec.get("label_col")
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if not isinstance(label, dict) or not isinstance(label.get("name"), str):
        raise unsupported(where, "label_col", label, "Exactly one label is supported. Write {name: ..., dtype: float}.")
    return str(label["name"])


def read_min_count(where: str, spec: Spec) -> int | None:
    """Return `min_categr_count`, or None if it is not set."""
    count = spec.get("min_categr_count")
    if count is not None and (type(count) is not int or count < 1):
        raise unsupported(where, "min_categr_count", count, "Write a whole number of at least 1.")
    return count


def read_path(where: str, key: str, spec: Spec, root: Path) -> PurePosixPath:
    """Return a file's path relative to the data folder: the part after "../data/", or after `root` if absolute."""
    endings = one_of(where, "data_format", spec, FORMATS, UNSUPPORTED_FORMATS)
    value = spec.get(key)
    if not isinstance(value, str) or not value.endswith(endings):
        raise unsupported(where, key, value, f"Specify one file that ends in {' or '.join(endings)}.")
    path = PurePosixPath(value)
    if path.is_absolute():
        if not path.is_relative_to(root.resolve()):
            raise unsupported(where, key, value, f"The file must be inside --data {root}.")
        return path.relative_to(root.resolve())
    parts = list(path.parts)
    while parts[0] == "..":
        parts.pop(0)
    if ".." in parts:
        raise unsupported(where, key, value, "Write the path without .. in the middle.")
    return PurePosixPath(*parts[1:] if parts[0] == "data" else parts)


def one_of(where: str, key: str, spec: Spec, allowed: dict[str, Value], fixes: dict[str, str] | None = None) -> Value:
    """Return the equivalent of a key's value.

    Args:
        where: The beginning of the error message.
        key: The key.
        spec: The keys and values.
        allowed: The equivalent of each allowed value.
        fixes: What to do about values that only FuxiCTR supports.
    """
    value = spec.get(key)
    if isinstance(value, str) and value in allowed:
        return allowed[value]
    names = ", ".join(name for name in allowed if name)
    raise unsupported(where, key, value, (fixes or {}).get(str(value), f"Write one of {names}."))


def unsupported(where: str, key: str, value: object, fix: str) -> ValueError:
    """Return the error for an unsupported value."""
    return ValueError(f"{where}: {key}: {value!r} is not supported. {fix}")
