"""An experiment's TOML file as a typed struct: a misspelled key is an error, not a default."""

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
    """The training recipe of section 4.1.5, with the choices that the paper leaves open.

    Attributes:
        epochs: The maximum number of epochs.
        batch_size: Rows in a step.
        learning_rate: Adam's, at the start.
        monitor: The metric on valid that must improve. After an epoch without improvement, the learning rate falls to a
            tenth.
        patience: Training stops after so many epochs in a row without improvement.
        embedding_l2: The loss gets (embedding_l2 / 2) times the squared norm of all embeddings.
        net_l2: The same for all other weights.
        clip: The maximum norm of the gradient.
        unknown_rate: The share of tokens, per field, that training replaces by the unknown id. In a field that is never
            missing in the log, the missing id replaces the same share.
        exact_statistics: Whether the best epoch's batch norms finally get the statistics of all of train (see
            model/training/exact_statistics.py). In FuxiCTR, and so in the paper, they keep those of the last batches.
        seed: The seed of the initial weights, the shuffling and the dropout.
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
    """An experiment: its log, its model (one of MODELS in model/zoo.py, chosen by `type`) and its training."""

    name: str
    data: Data
    model: Config = STECConfig()
    training: Training = Training()


def read_experiment(path: Path) -> Experiment:
    """Return the experiment in a TOML file.

    Raises:
        ValueError: If a key is unknown or a value is out of range. The message names the file and the key.
    """
    return read_toml(path, to_experiment)


def common_data(experiments: Sequence[Experiment]) -> Data:
    """Return the [data] section that all experiments share.

    Raises:
        ValueError: If two sections differ. The message names the two experiments.
    """
    first = experiments[0]
    for other in experiments:
        if other.data != first.data:
            raise ValueError(
                f"{first.name} and {other.name} have different [data] sections. Use experiments of one log."
            )
    return first.data


def to_experiment(document: dict[str, Any]) -> Experiment:
    """Return the experiment that a TOML file's tables describe.

    Raises:
        ValueError: If a key is unknown or a value is out of range. The message names the key.
    """
    typed = with_model_type(document)
    try:
        return msgspec.convert(typed, Experiment)
    except msgspec.ValidationError as error:
        if "unknown field" not in str(error):
            raise
        sections: dict[str, type[msgspec.Struct]] = {"data": Data, "training": Training}
        if str(error).endswith("`$.model`"):
            name = typed["model"]["type"]
            raise ValueError(f"{error}. {name} has the keys {', '.join(MODELS[name][0].__struct_fields__)}.") from error
        for name, section in sections.items():
            if str(error).endswith(f"`$.{name}`"):
                raise ValueError(f"{error}. [{name}] has the keys {', '.join(section.__struct_fields__)}.") from error
        raise


def with_model_type(document: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment's tables with the model's `type`, which is stec by default.

    Raises:
        ValueError: If no model has this type.
    """
    model = document.get("model", {})
    if not isinstance(model, dict):
        return document  # msgspec has the better message
    if str(kind := model.get("type", "stec")) not in MODELS:
        raise ValueError(f"model.type = {kind!r} is not a model. Choose one of {', '.join(MODELS)}.")
    return document | {"model": {"type": "stec"} | model}
