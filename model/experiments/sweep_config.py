"""A sweep's TOML file: a base experiment, and the points at which it differs from it.

    base = "stec.toml"              # beside the sweep's file; or several of one log, each with all points
    seeds = 1                       # runs a point
    [grid]                          # every combination of these
    embedding = [16, 32]
    embedding_l2 = [0.05, 0.1]
    [[point]]                       # and each of these, by itself
    mlp = [400]

A key is any of the experiment's [model] and [training], but `seed`. A point without keys is the base itself.
"""

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from model.experiment_config import Experiment, Training, common_data, read_experiment
from model.stec.ablations import ablation
from model.toml import Positive, read_toml

ABLATION = "ablation"
T = TypeVar("T", bound=msgspec.Struct)


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    base: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    seeds: Positive = 1
    grid: dict[str, list[Any]] = {}
    point: list[dict[str, Any]] = []

    @property
    def bases(self) -> list[str]:
        return [self.base] if isinstance(self.base, str) else self.base


@dataclass(frozen=True)
class Point:
    """label: what it changes, in words; its experiment's name ends with it."""

    label: str
    experiment: Experiment


@dataclass(frozen=True)
class Base:
    """An experiment, of the file `toml`, and the points around it."""

    toml: str
    experiment: Experiment
    points: list[Point]


def read_sweep(path: Path) -> tuple[Sweep, list[Base]]:
    """The sweep, and its bases with their points.

    Two points of other words may come to the same settings; they then share their runs.

    Raises:
        ValueError: naming the file and the key, for one that is unknown or whose value is out of range, the point
            that is there twice in the same words, or bases that are not two experiments of one log.
    """
    sweep = read_toml(path, partial(msgspec.convert, type=Sweep), "sweep")
    experiments = {toml: read_experiment(path.parent / toml) for toml in sweep.bases}
    changes = [*_combinations(sweep.grid), *sweep.point]
    if not changes:
        raise ValueError(f"{path}: a sweep needs a [grid] or a [[point]]")
    labels = [_label(change) for change in changes]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(f"{path}: {min(twice)}: this point is there twice")
    _check_bases(path, sweep.bases, list(experiments.values()))
    return sweep, [Base(toml, base, _points(path, toml, base, changes)) for toml, base in experiments.items()]


def _check_bases(path: Path, tomls: list[str], bases: list[Experiment]) -> None:
    names = [base.name for base in bases]
    if len({*names}) < len(tomls):
        raise ValueError(f"{path}: base names one experiment twice, or two of one name: {', '.join(tomls)}")
    if len({(path.parent / toml).parent for toml in tomls}) > 1:
        raise ValueError(f"{path}: base names files of several folders, each with its own runs.jsonl: take one's")
    try:
        common_data(bases)
    except ValueError as error:
        raise ValueError(f"{path}: base: {error}") from error


def _points(path: Path, toml: str, base: Experiment, changes: list[dict[str, Any]]) -> list[Point]:
    try:
        return [Point(_label(change), _changed(base, change)) for change in changes]
    except ValueError as error:
        raise ValueError(f"{path}: around {toml}: {error}") from error


def _combinations(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    if not grid:
        return []
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _label(change: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in change.items()) or "base"


def _changed(base: Experiment, change: dict[str, Any]) -> Experiment:
    """The ablation comes first: a point may change what it left."""
    model = base.model
    if ABLATION in change:
        model = ablation(change[ABLATION], model)
    keys = {key: value for key, value in change.items() if key != ABLATION}
    for key in keys:
        if key == "seed" or key not in {*model.__struct_fields__, *Training.__struct_fields__}:
            raise ValueError(f"{key!r} is no key of [model] or [training] that a sweep can change")
    try:
        return Experiment(
            name=f"{base.name}: {_label(change)}",
            data=base.data,
            model=_with(model, keys),
            training=_with(base.training, keys),
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"{_label(change)}: {error}") from error


def _with(section: T, keys: dict[str, Any]) -> T:
    """The section with those of the keys that are its own, checked as a TOML file's are."""
    own = {key: value for key, value in keys.items() if key in section.__struct_fields__}
    return msgspec.convert(msgspec.to_builtins(section) | own, type(section))
