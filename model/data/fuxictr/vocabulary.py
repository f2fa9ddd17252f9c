"""FuxiCTR's feature_map.json and feature_vocab.json -> our vocabularies, tokens in the order of FuxiCTR's ids.

FuxiCTR 2 has __PAD__ at 0, tokens from 1 on and __OOV__ last; FuxiCTR 1 has __OOV__ at 0 and tokens from 1 on. Either
way the embedding of its id n is that of our id n + 1, and __OOV__'s that of our id 0. (Where `remap: false` left gaps
between its ids, only the order is the same.)
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
SOURCE = "source.json"  # what a folder of vocabularies was made of
WITHOUT = "leave out --feature-vocab, and ctr-prepare counts the tokens of the log"


def read_vocabularies(path: Path, features: Sequence[Feature]) -> dict[str, Vocabulary]:
    """One for each categorical feature.

    Raises:
        ValueError: naming file, feature and token, for ids that are neither version's, or a token that does not fit.
    """
    tables = _decode(path, dict[str, dict[str, int]])
    vocabularies = {}
    for feature in features:
        if feature.field.kind == "categorical":
            where = f"{path}: feature {feature.field.name!r}"
            if feature.field.name not in tables:
                raise ValueError(f"{where}: is not there: give the file of the same data set, or {WITHOUT}")
            if feature.transform:
                raise ValueError(f"{where}: {feature.transform} makes other tokens than FuxiCTR: {WITHOUT}")
            vocabularies[feature.field.name] = _vocabulary(where, feature, tables[feature.field.name])
    return vocabularies


def check_feature_map(path: Path, features: Sequence[Feature], vocab: Path | None) -> None:
    """Raises ValueError, naming the file, unless it has the same features in the same order, of the same types, and the
    vocabulary's sizes."""
    specs = _map_features(path)
    names, expected = [name for name, _ in specs], [feature.field.name for feature in features]
    if names != expected:
        raise ValueError(
            f"{path}: has the features {names}, the configuration {expected}: they belong to two data sets"
        )
    tables = {} if vocab is None else _decode(vocab, dict[str, dict[str, int]])
    for feature, (name, spec) in zip(features, specs, strict=True):
        if spec.get("type") != feature.field.kind:
            raise ValueError(
                f"{path}: feature {name!r} is {spec.get('type')!r}, the configuration says {feature.field.kind!r}"
            )
        size = max(tables[name].values(), default=-1) + 1 if name in tables else None
        if size is not None and spec.get("vocab_size") != size:
            raise ValueError(
                f"{path}: feature {name!r} has vocab_size {spec.get('vocab_size')}, {vocab} has {size} ids"
            )


def write_vocabularies(target: Path, vocabularies: Mapping[str, Vocabulary], source: str) -> None:
    """<field>.marisa and <field>.ids.npy, whole or not at all.

    Raises:
        ValueError: when `target` is a folder of another kind.
    """
    with new_folder(target, marker=SOURCE) as folder:
        for name, vocabulary in vocabularies.items():
            vocabulary.save(folder, name)
        sizes = {name: len(vocabulary) for name, vocabulary in vocabularies.items()}
        (folder / SOURCE).write_bytes(msgspec.json.encode({"source": source, "sizes": sizes}) + b"\n")


def _vocabulary(where: str, feature: Feature, ids: dict[str, int]) -> Vocabulary:
    _check_ids(where, ids)
    ranked = sorted((one for one in ids.items() if one[0] not in (PADDING, UNKNOWN)), key=lambda one: one[1])
    tokens = [_token(where, feature, key) for key, _ in ranked]
    try:
        return build_vocabulary(one for one in tokens if one is not None and one not in feature.missing)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_ids(where: str, ids: dict[str, int]) -> None:
    tokens = [number for key, number in ids.items() if key not in (PADDING, UNKNOWN)]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"{where}: two tokens have one id: {WITHOUT}")
    first = ids.get(PADDING, 0) == 0 and ids.get(UNKNOWN) == 0
    second = ids.get(PADDING) == 0 and ids.get(UNKNOWN, -1) == max(ids.values(), default=0) > 0
    if not (first or second) or any(number < 1 for number in tokens) or (second and ids[UNKNOWN] in tokens):
        ends = f"{PADDING} {ids.get(PADDING)}, {UNKNOWN} {ids.get(UNKNOWN)}, tokens from {min(tokens, default=None)}"
        raise ValueError(f"{where}: {ends}: ids are numbered as in neither FuxiCTR 1 nor 2: {WITHOUT}")


def _token(where: str, feature: Feature, key: str) -> str | None:
    """FuxiCTR reads a column of dtype float as numbers, and writes "123.0" for 123; a client sends 123."""
    if feature.dtype != "float":
        return token(key)
    try:
        return token(float(key))
    except ValueError as error:
        raise ValueError(
            f"{where}: token {key!r} is no finite number, but its dtype is float: write dtype: str"
        ) from error


def _map_features(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """FuxiCTR 2 writes a list of one-entry mappings, FuxiCTR 1 one mapping."""
    features = _decode(path, dict[str, Any]).get("features")
    pairs = [list(one.items()) for one in features if isinstance(one, dict)] if isinstance(features, list) else []
    if isinstance(features, dict):
        pairs = [list(features.items())]
    specs = [(name, spec) for some in pairs for name, spec in some if isinstance(spec, dict)]
    if not specs:
        raise ValueError(f"{path}: has no features: it is not FuxiCTR's feature_map.json")
    return [(name, spec) for name, spec in specs if spec.get("type") != "meta"]


def _decode(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not FuxiCTR's {path.stem}: {error}") from error
