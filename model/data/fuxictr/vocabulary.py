"""Vocabularies from FuxiCTR's feature_map.json and feature_vocab.json, with tokens in the order of FuxiCTR's ids.

In FuxiCTR 2, __PAD__ has id 0, tokens start at 1, and __OOV__ has the last id. In FuxiCTR 1, __OOV__ has id 0, tokens
start at 1, and __PAD__, if there is one, has id 0 or the last id. In both cases, FuxiCTR's id n corresponds to our id
n + 1, and __OOV__ corresponds to our id 0. (If `remap: false` left gaps between FuxiCTR's ids, only the order is the
same.)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from contract.tokens import token
from contract.vocabulary import Vocabulary, build_vocabulary
from model.atomic_folder import new_folder
from model.data.fuxictr.config import Feature

PADDING, UNKNOWN = "__PAD__", "__OOV__"
SOURCE = "source.json"  # records which file a folder of vocabularies was created from
COUNT_INSTEAD = "Leave out --feature-vocab, so that ctr-prepare counts the tokens of the log."


def read_vocabularies(path: Path, features: Sequence[Feature]) -> dict[str, Vocabulary]:
    """Return the vocabulary of each categorical feature in a feature_vocab.json.

    Raises:
        ValueError: If the ids match neither version of FuxiCTR, or a token is invalid. The message names the file and
            the feature.
    """
    tables = decode_json(path, dict[str, dict[str, int]])
    vocabularies = {}
    for feature in features:
        if feature.field.kind == "categorical":
            where = f"{path}: feature {feature.field.name!r}"
            if feature.field.name not in tables:
                raise ValueError(f"{where}: is missing. Use the file of the same data set. {COUNT_INSTEAD}")
            if feature.transform:
                raise ValueError(f"{where}: {feature.transform} creates different tokens than FuxiCTR. {COUNT_INSTEAD}")
            vocabularies[feature.field.name] = convert_table(where, feature, tables[feature.field.name])
    return vocabularies


def check_feature_map(path: Path, features: Sequence[Feature], vocab: Path | None) -> None:
    """Check that a feature_map.json matches the configuration's features and the sizes of the vocabularies.

    Args:
        path: The feature_map.json.
        features: The features of the configuration.
        vocab: The feature_vocab.json, or None.

    Raises:
        ValueError: If a name, the order, a type or a size differs.
    """
    specs = read_feature_map(path)
    names, expected = [name for name, _ in specs], [feature.field.name for feature in features]
    if names != expected:
        raise ValueError(
            f"{path}: the features are {names}, but the configuration has {expected}. Use files of the same data set."
        )
    tables = {} if vocab is None else decode_json(vocab, dict[str, dict[str, int]])
    for feature, (name, spec) in zip(features, specs, strict=True):
        if spec.get("type") != feature.field.kind:
            raise ValueError(
                f"{path}: feature {name!r} is {spec.get('type')!r}, but {feature.field.kind!r} in the configuration"
            )
        size = max(tables[name].values(), default=-1) + 1 if name in tables else None
        if size is not None and spec.get("vocab_size") != size:
            raise ValueError(
                f"{path}: feature {name!r} has vocab_size {spec.get('vocab_size')}, but {vocab} has {size} ids"
            )


def read_feature_map(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the keys of each feature in a feature_map.json.

    FuxiCTR 2 writes `features`, a list of mappings with one entry each. FuxiCTR 1 writes `feature_specs`, one
    mapping.
    """
    document = decode_json(path, dict[str, Any])
    features = document.get("features", document.get("feature_specs"))
    mappings = features if isinstance(features, list) else [features]
    specs = [
        (name, spec)
        for mapping in mappings
        if isinstance(mapping, dict)
        for name, spec in mapping.items()
        if isinstance(spec, dict)
    ]
    if not specs:
        keys = ", ".join(document) or "no keys"
        raise ValueError(
            f"{path}: has neither features (FuxiCTR 2) nor feature_specs (FuxiCTR 1), but {keys}. Specify the "
            "feature_map.json that FuxiCTR wrote next to its data, or leave out --feature-map."
        )
    return [(name, spec) for name, spec in specs if spec.get("type") != "meta"]


def write_vocabularies(target: Path, vocabularies: Mapping[str, Vocabulary], source: str) -> None:
    """Write <field>.marisa and <field>.ids.npy for each vocabulary, atomically.

    Args:
        target: The folder to write.
        vocabularies: The vocabulary of each field.
        source: The name of the file that they were created from.

    Raises:
        ValueError: If `target` exists and is not a folder of vocabularies.
    """
    with new_folder(target, marker=SOURCE) as folder:
        for name, vocabulary in vocabularies.items():
            vocabulary.save(folder, name)
        sizes = {name: len(vocabulary) for name, vocabulary in vocabularies.items()}
        (folder / SOURCE).write_bytes(msgspec.json.encode({"source": source, "sizes": sizes}) + b"\n")


def convert_table(where: str, feature: Feature, ids: dict[str, int]) -> Vocabulary:
    """Return a feature's vocabulary, given FuxiCTR's id of each token."""
    check_ids(where, ids)
    keys = sorted((key for key in ids if key not in (PADDING, UNKNOWN)), key=lambda key: ids[key])
    tokens = [convert_token(where, feature, key) for key in keys]
    try:
        return build_vocabulary(token for token in tokens if token is not None and token not in feature.missing)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_ids(where: str, ids: dict[str, int]) -> None:
    """Check that the ids are numbered as in FuxiCTR 1 or 2."""
    tokens = [number for key, number in ids.items() if key not in (PADDING, UNKNOWN)]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"{where}: two tokens have the same id. {COUNT_INSTEAD}")
    last = max(ids.values(), default=0)
    is_version_1 = ids.get(PADDING, 0) in (0, last) and ids.get(UNKNOWN) == 0
    is_version_2 = ids.get(PADDING) == 0 and ids.get(UNKNOWN, -1) == last > 0
    has_bad_token = any(number < 1 or number in (ids.get(PADDING), ids.get(UNKNOWN)) for number in tokens)
    if not (is_version_1 or is_version_2) or has_bad_token:
        ends = f"{PADDING} {ids.get(PADDING)}, {UNKNOWN} {ids.get(UNKNOWN)}, tokens from {min(tokens, default=None)}"
        raise ValueError(f"{where}: {ends}: these ids match neither FuxiCTR 1 nor 2. {COUNT_INSTEAD}")


def convert_token(where: str, feature: Feature, key: str) -> str | None:
    """Return the token that corresponds to a key of FuxiCTR's vocabulary.

    FuxiCTR reads a column of dtype float as numbers and writes 123 as "123.0", but a client sends 123.
    """
    if feature.dtype != "float":
        return token(key)
    try:
        return token(float(key))
    except ValueError as error:
        raise ValueError(
            f"{where}: token {key!r} is not a finite number, but the dtype is float. Write dtype: str."
        ) from error


def decode_json(path: Path, kind: type[Any]) -> Any:
    """Decode a JSON file as this type."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not FuxiCTR's {path.stem}: {error}") from error
