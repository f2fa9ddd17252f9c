"""A sweep's TOML file: base experiments and the points at which to train them.

    base = "stec.toml"              # relative to the sweep's file; or a list of experiments on the same log
    seeds = 1                       # runs per point
    [grid]                          # every combination of these values is a point
    embedding = [16, 32]
    embedding_l2 = [0.05, 0.1]
    [[point]]                       # each of these entries is also a point
    mlp = [400]

A key is `ablation` or any key of the experiment's [model] and [training] sections except `seed`. A point without keys
is the base experiment itself.
"""

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec

from model.data_config import first_duplicate
from model.experiment_config import Experiment, Training, common_data, read_experiment, to_experiment
from model.stec.ablations import ablation
from model.toml import Positive, read_toml, to_struct
from model.toml_text import did_you_mean, toml_text

ABLATION, SEED = "ablation", "seed"


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of a sweep's file.

    Attributes:
        base: The TOML file of the base experiment, relative to the sweep's file, or a list of files in the same folder
            that use the same log. Every base experiment is trained at every point.
        seeds: The number of runs per point.
        grid: Lists of values by key. Every combination of these values is a point.
        point: Values by key. Each entry is one point.
    """

    base: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    seeds: Positive = 1
    grid: dict[str, Annotated[list[Any], msgspec.Meta(min_length=1)]] = {}
    point: list[dict[str, Any]] = []

    @property
    def bases(self) -> list[str]:
        """The TOML files of the base experiments."""
        return [self.base] if isinstance(self.base, str) else self.base


@dataclass(frozen=True)
class Point:
    """A point of a sweep: the base experiment with some changes.

    Attributes:
        label: The changes, for example "embedding 32, embedding_l2 0.1".
        experiment: The changed experiment. Its name ends with the label.
    """

    label: str
    experiment: Experiment


@dataclass(frozen=True)
class Base:
    """A base experiment, read from the file `toml`, and its points."""

    toml: str
    experiment: Experiment
    points: list[Point]


def read_sweep(path: Path) -> tuple[Sweep, list[Base]]:
    """Read a sweep, and return it with its base experiments and their points.

    Points with different labels may have the same settings. In this case, they share their runs.

    Raises:
        ValueError: If a key is unknown, if a value is out of range, if a label occurs twice, or if the bases are not
            distinct experiments in one folder with the same log. The message names the file and the key.
    """
    sweep = read_toml(path, partial(to_struct, struct=Sweep), "sweep")
    experiments = {toml: read_base(path, toml) for toml in sweep.bases}
    combinations = itertools.product(*sweep.grid.values()) if sweep.grid else ()
    changes = [*(dict(zip(sweep.grid, values, strict=True)) for values in combinations), *sweep.point]
    if not changes:
        raise ValueError(f"{path}: a sweep needs points. Add a [grid] section or [[point]] entries.")
    if (label := first_duplicate([label_of(change) for change in changes])) is not None:
        raise ValueError(f"{path}: the point {label} occurs twice. Remove one from [grid] or [[point]].")
    check_bases(path, sweep.bases, list(experiments.values()))
    bases = []
    for toml, base in experiments.items():
        try:
            bases.append(Base(toml, base, [Point(label_of(c), apply_change(base, c)) for c in changes]))
        except ValueError as error:
            raise ValueError(f"{path}: base {toml}: {error}") from error
    return sweep, bases


def read_base(path: Path, toml: str) -> Experiment:
    """Return a base experiment of the sweep at `path`."""
    try:
        return read_experiment(path.parent / toml)
    except ValueError as error:
        raise ValueError(f"{path}: base = {toml_text(toml)}: {error}") from error


def check_bases(path: Path, tomls: list[str], bases: list[Experiment]) -> None:
    """Check that the bases can share one runs.jsonl and one report."""
    if len({base.name for base in bases}) < len(tomls):
        raise ValueError(f"{path}: base lists an experiment twice, or two with the same name: {', '.join(tomls)}")
    if len({(path.parent / toml).parent for toml in tomls}) > 1:
        raise ValueError(f"{path}: base lists files of several folders, each with its own runs.jsonl. Use one folder.")
    try:
        common_data(bases)
    except ValueError as error:
        raise ValueError(f"{path}: base: {error}") from error


def label_of(change: dict[str, Any]) -> str:
    """Return the label of a point."""
    return ", ".join(f"{key} {value}" for key, value in change.items()) or "base"


def apply_change(base: Experiment, change: dict[str, Any]) -> Experiment:
    """Return the experiment at a point. The ablation is applied first, so that other keys can override its settings."""
    try:
        model = ablation(change[ABLATION], base.model) if ABLATION in change else base.model
        document = msgspec.to_builtins(msgspec.structs.replace(base, model=model))
        document["name"] = f"{base.name}: {label_of(change)}"
        for key, value in change.items():
            if key != ABLATION:
                document[section_of(key, model)][key] = value
        return to_experiment(document)
    except ValueError as error:
        raise ValueError(f"the point {label_of(change)}: {error}") from error


def section_of(key: str, model: msgspec.Struct) -> str:
    """Return the section of an experiment, "model" or "training", that a sweep's key belongs to."""
    sections = {"model": model.__struct_fields__, "training": Training.__struct_fields__}
    for section, keys in sections.items():
        if key in keys and key != SEED:
            return section
    valid = [ABLATION, *(name for keys in sections.values() for name in keys if name != SEED)]
    fix = " Use seeds = N at the top of the file." if key == SEED else did_you_mean(key, valid)
    raise ValueError(
        f"{toml_text(key)} is not a key of [model] or [training] that a sweep can change.{fix} The keys are "
        f"{', '.join(valid)}."
    )
