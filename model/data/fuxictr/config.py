"""One data set of FuxiCTR's dataset_config.yaml, typed.

FuxiCTR evaluates `dtype` and `feature_encoder` as Python. Here nothing is: what is on none of these lists is refused.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml

from contract.schema import NAME, Field, Kind, Side, Transform
from contract.tokens import token
from model.data.readers.log import SPLITS

Value = TypeVar("Value")
Spec = dict[str, Any]

DTYPES = {name: name for name in ("str", "int", "float")}
FORMATS = {"csv": (".csv", ".csv.gz"), "parquet": (".parquet",)}
KINDS: dict[str, Kind] = {"categorical": "categorical", "numeric": "numeric"}
# What `source` says in FuxiCTR's and BARS's configurations.
SIDES: dict[str, Side] = {
    "": "context",
    "user": "context",
    "context": "context",
    "item": "candidate",
    "ad": "candidate",
    "candidate": "candidate",
}
# NOTE[DIFF] FuxiCTR's convert_to_bucket leaves 1 and 2 as they are, and so gives 1 the token of 3, whose bucket is 1.
TRANSFORMS: dict[str, Transform] = {"convert_to_bucket": "log_square"}

DATASET_KEYS = {
    *("data_root", "data_format", "train_data", "valid_data", "test_data"),
    *("min_categr_count", "feature_cols", "label_col", "rebuild_dataset"),
}
FEATURE_KEYS = {
    *("name", "active", "dtype", "type", "source", "min_categr_count", "fill_na", "na_value", "normalizer"),
    *("preprocess", "remap", "vocab_size", "feature_encoder", "encoder"),
}
OTHER_TYPES = {"sequence": "put one value into the log, or set active: false", "embedding": "set active: false"}
OTHER_KEYS = {
    "share_embedding": "every field has an embedding of its own here: remove the key",
    "pretrained_emb": "embeddings are trained from nothing here: remove the key",
    "category_processor": "put the bucket or the hash into the log, as a column",
    "embedding_dim": "all fields are model.embedding wide: remove the key",
    "emb_output_dim": "all fields are model.embedding wide: remove the key",
}
OF_HOUR = 'read raw Avazu with reader = "avazu", which makes hour_of_day, weekday and is_weekend'
OTHER_FUNCTIONS = {
    "copy_from": "put the copy into the log, as a column",
    "convert_hour": OF_HOUR,
    "convert_weekday": OF_HOUR,
    "convert_weekend": OF_HOUR,
}


@dataclass(frozen=True)
class Feature:
    """A column that is a field. dtype: str, int or float, the type in which FuxiCTR reads it.

    missing: tokens that mean that there is no value. min_count: None, where the data set's holds.
    """

    field: Field
    dtype: str
    missing: tuple[str, ...]
    min_count: int | None
    transform: Transform | None


@dataclass(frozen=True)
class Dataset:
    """files: by split, relative to --data. left_out: columns that are no features: inactive, or `meta`."""

    name: str
    files: dict[str, PurePosixPath]
    label: str
    min_count: int
    features: tuple[Feature, ...]
    left_out: tuple[str, ...]


def read_dataset(path: Path, name: str, candidate: tuple[str, ...], root: Path) -> Dataset:
    """candidate: features that are the candidate's, whatever their `source`. root: where absolute paths must lie.

    Raises:
        ValueError: naming file, data set, feature, key and value, and the way out.
    """
    where = f"{path}: dataset {name!r}"
    spec = _choose(path, name)
    for key in sorted(spec.keys() - DATASET_KEYS):
        raise _refused(where, key, spec[key], "remove it, if the columns mean the same without it")
    columns = [column for entry in _feature_cols(where, spec) for column in _expand(where, entry)]
    used = [column for column in columns if column.get("active", True) is not False and column.get("type") != "meta"]
    names = [column["name"] for column in used]
    if twice := [one for one in names if names.count(one) > 1]:
        raise ValueError(f"{where}: feature {twice[0]!r} is there twice: set active: false in one of them")
    if strangers := set(candidate) - set(names):
        raise ValueError(f"{where}: --candidate {min(strangers)}: no such feature, only {', '.join(names)}")
    features = tuple(_feature(where, column, column["name"] in candidate) for column in used)
    _check_sides(where, features)
    left_out = tuple(column["name"] for column in columns if column not in used)
    files = {split: _file(where, f"{split}_data", spec, root) for split in SPLITS}
    return Dataset(name, files, _label(where, spec), _count(where, spec) or 1, features, left_out)


def _choose(path: Path, name: str) -> Spec:
    try:
        datasets = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file: name FuxiCTR's dataset_config.yaml") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(datasets, dict):
        raise ValueError(f"{path}: holds no data sets: name FuxiCTR's dataset_config.yaml")
    if not isinstance(datasets.get(name), dict) or not NAME.fullmatch(name):
        raise ValueError(f"{path}: has no dataset {name!r}: --dataset takes one of {', '.join(map(str, datasets))}")
    return {str(key): value for key, value in datasets[name].items()}


def _feature_cols(where: str, spec: Spec) -> list[Any]:
    columns = spec.get("feature_cols")
    if not isinstance(columns, list) or not columns:
        raise _refused(where, "feature_cols", columns, "write a list of features")
    return list(columns)


def _expand(where: str, column: Any) -> list[Spec]:
    """One specification for each of an entry's names."""
    if not isinstance(column, dict) or not column.get("name"):
        raise _refused(where, "feature_cols", column, "every entry is a mapping with a name")
    names = column["name"] if isinstance(column["name"], list) else [column["name"]]
    return [{str(key): value for key, value in column.items()} | {"name": str(name)} for name in names]


def _feature(where: str, column: Spec, candidate: bool) -> Feature:
    where = f"{where}: feature {column['name']!r}"
    _check_keys(where, column)
    kind = _one_of(where, "type", column, KINDS, OTHER_TYPES)
    dtype = _one_of(where, "dtype", column, DTYPES)
    if kind == "numeric" and dtype == "str":
        raise _refused(where, "dtype", dtype, "a numeric feature is int or float")
    side = "candidate" if candidate else _one_of(where, "source", {"source": ""} | column, SIDES)
    try:
        field = Field(column["name"], side, kind)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    count = _count(where, column)
    return Feature(field, dtype, _missing(where, kind, column), count, _transform(where, kind, column))


def _check_keys(where: str, column: Spec) -> None:
    for key, value in column.items():
        if key in OTHER_KEYS and value is not None:
            raise _refused(where, key, value, OTHER_KEYS[key])
        if key not in FEATURE_KEYS and key not in OTHER_KEYS:
            raise _refused(where, key, value, "remove it, if the column means the same without it")
        if key in ("feature_encoder", "encoder") and value not in (None, "", "null", "None", "none"):
            raise _refused(where, key, value, "a field is one embedding here: write null")
        if key == "normalizer" and value not in (None, "StandardScaler"):
            raise _refused(where, key, value, "numbers are always scaled as StandardScaler does: write that")


def _missing(where: str, kind: Kind, column: Spec) -> tuple[str, ...]:
    # FuxiCTR 1 calls it na_value. It fills empty values with it, and keeps it out of the vocabulary.
    key = "fill_na" if "fill_na" in column else "na_value"
    try:
        value = token(column.get(key))
    except ValueError as error:
        raise ValueError(f"{where}: {key} {error}") from error
    return (value,) if kind == "categorical" and value is not None else ()


def _transform(where: str, kind: Kind, column: Spec) -> Transform | None:
    preprocess = column.get("preprocess")
    if not preprocess:
        return None
    function, _, argument = str(preprocess).partition("(")
    if kind == "categorical" and function in TRANSFORMS and argument.removesuffix(")") in ("", column["name"]):
        return TRANSFORMS[function]
    raise _refused(
        where, "preprocess", preprocess, OTHER_FUNCTIONS.get(function, "put what it makes into the log, as a column")
    )


def _check_sides(where: str, features: tuple[Feature, ...]) -> None:
    sides = {feature.field.side for feature in features if feature.field.kind == "categorical"}
    if "candidate" not in sides:
        raise ValueError(f"{where}: no categorical feature has source: item: name the ad's by --candidate A,B")
    if "context" not in sides:
        raise ValueError(f"{where}: every categorical feature is the candidate's: give one source: user")


def _label(where: str, spec: Spec) -> str:
    label = spec.get("label_col")
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if not isinstance(label, dict) or not isinstance(label.get("name"), str):
        raise _refused(where, "label_col", label, "there is one label here: write {name: ..., dtype: float}")
    return str(label["name"])


def _count(where: str, spec: Spec) -> int | None:
    count = spec.get("min_categr_count")
    if count is not None and (type(count) is not int or count < 1):
        raise _refused(where, "min_categr_count", count, "write a whole number from 1 on")
    return count


def _file(where: str, key: str, spec: Spec, root: Path) -> PurePosixPath:
    """What follows "../data/" in FuxiCTR's path; below `root` in an absolute one."""
    endings = _one_of(where, "data_format", spec, FORMATS, dict.fromkeys(("h5", "npz"), "name the raw csv or parquet"))
    value = spec.get(key)
    if not isinstance(value, str) or not value.endswith(endings):
        raise _refused(where, key, value, f"name one file that ends in {' or '.join(endings)}")
    path = PurePosixPath(value)
    if path.is_absolute():
        if not path.is_relative_to(root.resolve()):
            raise _refused(where, key, value, f"it must lie below --data {root}")
        return path.relative_to(root.resolve())
    parts = list(path.parts)
    while parts[0] == "..":
        parts.pop(0)
    if ".." in parts:
        raise _refused(where, key, value, "write it without .. in the middle")
    return PurePosixPath(*parts[1:] if parts[0] == "data" else parts)


def _one_of(
    where: str, key: str, spec: Spec, allowed: dict[str, Value], ways_out: dict[str, str] | None = None
) -> Value:
    value = spec.get(key)
    if isinstance(value, str) and value in allowed:
        return allowed[value]
    some = ", ".join(name for name in allowed if name)
    raise _refused(where, key, value, (ways_out or {}).get(str(value), f"write one of {some}"))


def _refused(where: str, key: str, value: object, way_out: str) -> ValueError:
    return ValueError(f"{where}: {key}: {value!r} is not supported: {way_out}")
