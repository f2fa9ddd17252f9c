"""An experiment's TOML file as a typed struct. A misspelled key is an error instead of being ignored."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from model.data_config import Data, first_difference, with_data_defaults
from model.stec.norms import NORM_EPS
from model.stec.stec import STECConfig
from model.toml import Positive, Rate, read_toml, to_struct
from model.toml_text import did_you_mean, toml_text
from model.unused_keys import check_data_keys, check_training_keys
from model.zoo import MODELS, Config

# The keys that version 0.11 did not have, and what they are in its runs and checkpoints.
DATA_OF_0_11: dict[str, Any] = {"train_negative_rate": 1.0, "position": ""}
# The same for version 0.9.
TRAINING_OF_0_9: dict[str, Any] = {
    "ema_half_life": 0.0,
    "ema_min_steps": 20,
    "weights": "raw",
    "learning_rate_factor": 0.1,
    "evaluations_per_epoch": 1,
}
STEC_OF_0_9: dict[str, Any] = {
    "embedding_norm": "none",
    "layer_norm_eps": NORM_EPS,
    "level_eps": NORM_EPS,
    "level_eps_relative": 0.0,
}


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The training recipe of the paper's section 4.1.5, with options for what the paper leaves open.

    Attributes:
        epochs: The maximum number of epochs.
        batch_size: The number of rows per training step.
        learning_rate: Adam's initial learning rate.
        monitor: The validation metric that must improve. After an evaluation without improvement, the learning rate is
            multiplied by learning_rate_factor.
        patience: Training stops after this many consecutive evaluations without improvement.
        learning_rate_factor: What the learning rate is multiplied by after an evaluation without improvement. With 1,
            it is constant. The paper uses 0.1.
        evaluations_per_epoch: The number of evaluations on valid per epoch, at equal distances, and at most one per
            training step. The paper uses 1. With more, training can stop in the middle of an epoch. `patience` and
            learning-rate drops count evaluations.
        embedding_l2: The L2 penalty on embeddings. The loss includes (embedding_l2 / 2) times the squared norm of all
            embeddings.
        net_l2: The L2 penalty on all other weights. The loss includes (net_l2 / 2) times their squared norm.
        clip: The maximum norm of the gradient. Larger gradients are scaled down to it.
        unknown_rate: The share of each field's tokens that training replaces with the unknown id. If a field is never
            missing in the training set, the same share of its tokens is replaced with the missing id, so that this id
            is trained too. The same share of a numeric field's values is hidden if the field has a vector for missing
            numbers (`missing_number`) and is never missing in the training set.
        ema_half_life: The half-life, in epochs, of an exponential moving average of the weights and of the batch norms'
            running statistics. After each step, the average moves towards the current weights with a decay of at most
            0.5 ** (1 / half-life in steps), and less in the first steps. Both the current (raw) and the averaged
            weights are then evaluated, and the report compares them. With 0, as in the paper, there is no average.
        ema_min_steps: The shortest half-life in steps, because on a small log an epoch has too few steps to average.
        weights: Which weights determine learning-rate drops and stopping, and become the model: the current ones
            ("raw"), or their moving average ("averaged"), which needs an ema_half_life.
        exact_statistics: If true, the batch norms of the best weights get statistics computed over the whole training
            set (see model/training/exact_statistics.py). If false, they keep the statistics of the last batches, as in
            FuxiCTR and therefore in the paper, or the moving average of these with averaged weights.
        initial_bias: The model's mean prediction before training: the click rate of train ("log_odds"), or a
            probability of 0.5 ("zero").
        hide: Groups of categorical fields that training replaces with the unknown id together, such as
            [["ad"], ["ad", "campaign"]] for new ads. Each group is hidden in a share `unknown_rate` of the rows, in
            addition to each field alone. The metrics on test rows with unseen values are reported for each group; a
            group of one field changes only the report.
        seed: The random seed for the initial weights, the shuffling and the dropout.
    """

    epochs: Positive = 50
    batch_size: Annotated[int, Meta(ge=2)] = 4096
    learning_rate: Annotated[float, Meta(gt=0)] = 1e-3
    monitor: Literal["logloss", "auc"] = "logloss"
    patience: Positive = 2
    # NOTE[DIFF] The paper divides the learning rate by 10 after an epoch. These keys allow other schedules.
    learning_rate_factor: Annotated[float, Meta(gt=0, le=1)] = 0.1
    evaluations_per_epoch: Positive = 1
    embedding_l2: Annotated[float, Meta(ge=0)] = 0.0
    net_l2: Annotated[float, Meta(ge=0)] = 0.0
    clip: Annotated[float, Meta(gt=0)] = 10.0
    unknown_rate: Rate = 0.01
    # NOTE[DIFF] The paper does not average weights. These keys add an average to any model.
    ema_half_life: Annotated[float, Meta(ge=0)] = 0.0
    ema_min_steps: Positive = 20
    weights: Literal["raw", "averaged"] = "raw"
    exact_statistics: bool = True
    initial_bias: Literal["log_odds", "zero"] = "log_odds"
    hide: tuple[tuple[str, ...], ...] = ()
    seed: int = 1

    def __post_init__(self) -> None:
        if self.weights == "averaged" and not self.ema_half_life:
            raise ValueError(
                'weights = "averaged" needs an average, but ema_half_life is 0. Set ema_half_life to a number of '
                'epochs, such as 1, or set weights = "raw".'
            )
        for group in self.hide:
            if not group or len(set(group)) < len(group):
                raise ValueError(f"hide contains the group {list(group)}. A group needs one or more distinct fields.")
        if self.unknown_rate == 0 and any(len(group) > 1 for group in self.hide):
            raise ValueError(
                "hide has no effect with unknown_rate = 0, because unknown_rate is the share of rows in which fields "
                "are hidden. Raise unknown_rate, or remove the groups of several fields."
            )


def other_weights(recipe: Training) -> Literal["raw", "averaged"] | None:
    """Return which weights are evaluated beside those that `recipe` selects, or None without an average."""
    if not recipe.ema_half_life:
        return None
    return "averaged" if recipe.weights == "raw" else "raw"


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An experiment: a log, a model and a training recipe.

    Attributes:
        name: The name of the experiment, which is also the model's name in reports, bundles and responses.
        data: The log.
        model: The model. Its `type` selects one of MODELS in model/zoo.py.
        training: The training recipe.
    """

    name: str
    data: Data
    model: Config = STECConfig()
    training: Training = Training()


def read_experiment(path: Path) -> Experiment:
    """Read an experiment from a TOML file.

    Raises:
        ValueError: If a key is unknown or a value is out of range. The message names the file and the key.
    """

    def from_toml(document: dict[str, Any]) -> Experiment:
        experiment = to_experiment(document)
        check_data_keys(experiment.data, document["data"])
        check_training_keys(experiment.training, document.get("training", {}))
        return experiment

    return read_toml(path, from_toml)


def common_data(experiments: Sequence[Experiment]) -> Data:
    """Return the [data] section that all experiments share.

    Raises:
        ValueError: If two sections differ. The message names the two experiments.
    """
    first = experiments[0]
    for other in experiments:
        if difference := first_difference(first.data, other.data):
            raise ValueError(
                f"{first.name} and {other.name} have different [data] sections ({difference[0]} differs). Use "
                "experiments with the same log."
            )
    return first.data


def to_experiment(document: dict[str, Any]) -> Experiment:
    """Return the experiment described by a TOML file's tables.

    Raises:
        ValueError: If a key is unknown or a value is out of range. The message names the key.
    """
    experiment = to_struct(with_model_type(document), Experiment)
    check_finite(experiment)
    return experiment


def check_finite(experiment: Experiment) -> None:
    """Check that no setting is infinite. A run folder could not store it, so the run could not be exported.

    Raises:
        ValueError: If a setting is infinite. The message names the key.
    """
    for section in ("model", "training"):
        for key, value in msgspec.structs.asdict(getattr(experiment, section)).items():
            if isinstance(value, float) and math.isinf(value):
                raise ValueError(f"{section}.{key} = {value} must be finite. Use a large number, such as 1e9.")


def with_stored_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Return a stored experiment in which missing keys have the defaults of the version that wrote it.

    Versions before 0.9 or 0.10 did not store these keys. In a TOML file, a missing key has the current default instead.
    """
    training = {"initial_bias": "zero", "exact_statistics": False, **TRAINING_OF_0_9} | document.get("training", {})
    return document | {"data": with_data_defaults(document["data"]), "training": training}


def with_model_type(document: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment's tables with the model's `type` filled in; the default is "stec".

    Raises:
        ValueError: If there is no model of this type.
    """
    model = document.get("model", {})
    if not isinstance(model, dict):
        return document  # to_struct() reports it
    if str(kind := model.get("type", "stec")) not in MODELS:
        close = did_you_mean(str(kind), MODELS)
        raise ValueError(f"model.type = {toml_text(kind)} is not a model.{close} Choose one of {', '.join(MODELS)}.")
    return document | {"model": {"type": "stec"} | model}
