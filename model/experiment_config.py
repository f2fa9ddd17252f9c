"""An experiment's TOML file, typed: a misspelt key is an error, not a default."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from model.data_config import Data
from model.stec.stec import STECConfig
from model.toml import Positive, Rate, read_toml
from model.zoo import MODELS, Config


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The recipe of section 4.1.5, and what it leaves open.

    monitor: what must improve on valid; if it does not, the learning rate falls to a tenth at once,
    and after `patience` such epochs in a row training stops.
    embedding_l2, net_l2: (l2 / 2) times the squared norm of all embeddings, and of all other weights.
    unknown_rate: the share of tokens, per field, that training replaces by the unknown id, and in a
    field that the log never lacks, as many again by the missing one.
    exact_statistics: whether the batch norms of the best epoch's model get the statistics of all of train in the end
    (model/training/exact_statistics.py). FuxiCTR's, and so the paper's, are those of its last batches.
    """

    epochs: Positive = 50
    batch_size: Annotated[int, Meta(ge=2)] = 4096
    learning_rate: Annotated[float, Meta(gt=0)] = 1e-3
    monitor: Literal["logloss", "auc"] = "logloss"
    patience: Positive = 2
    embedding_l2: Annotated[float, Meta(ge=0)] = 0.0
    net_l2: Annotated[float, Meta(ge=0)] = 0.0
    clip: Annotated[float, Meta(gt=0)] = 10.0
    unknown_rate: Rate = 0.01
    exact_statistics: bool = False
    seed: int = 1


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """model: the config of one of model/zoo.py's MODELS, which its `type` names."""

    name: str
    data: Data
    model: Config = STECConfig()
    training: Training = Training()


def read_experiment(path: Path) -> Experiment:
    """Raises ValueError, with the file's name and the key, for an unknown key or a value out of range."""
    return read_toml(path, to_experiment)


def one_log(experiments: Sequence[Experiment]) -> Data:
    """The [data] section of all. Raises ValueError, naming the two, where there is more than one."""
    first = experiments[0]
    for other in experiments:
        if other.data != first.data:
            raise ValueError(f"{first.name} and {other.name} have different [data] sections: take those of one log")
    return first.data


def to_experiment(document: dict[str, Any]) -> Experiment:
    """Of a file's tables.

    Raises:
        ValueError: naming the key, for an unknown key or a value out of range.
    """
    typed = with_type(document)
    try:
        return msgspec.convert(typed, Experiment)
    except msgspec.ValidationError as error:
        if "unknown field" in str(error) and str(error).endswith("`$.model`"):
            name = typed["model"]["type"]
            raise ValueError(f"{error}: {name} has {', '.join(MODELS[name][0].__struct_fields__)}") from error
        raise


def with_type(document: dict[str, Any]) -> dict[str, Any]:
    """An experiment as a document, whose model without a `type` is STEC. Raises ValueError for a type that is none."""
    model = document.get("model", {})
    if not isinstance(model, dict):
        return document  # msgspec has the better words
    if str(kind := model.get("type", "stec")) not in MODELS:
        raise ValueError(f"model.type = {kind!r} is no model: choose one of {', '.join(MODELS)}")
    return document | {"model": {"type": "stec"} | model}
