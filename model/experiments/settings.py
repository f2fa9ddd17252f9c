"""The settings that ctr-train --auto changes, and the values that it tries."""

import math
from typing import Any

import msgspec

from model.data.recipe import first_net_l2
from model.experiment_config import Experiment
from model.training.batches import Split

KEYS = ("embedding_l2", "net_l2", "batch_size", "embedding", "learning_rate")
L2_GRID = (0.3, 1.0, 0.1, 3.0, 0.03)  # of embedding_l2; the middle first, in case the time is short
L2_STEP = 10**0.5
RANGES = {"embedding_l2": (1e-4, 1e3), "net_l2": (1e-6, 10.0), "batch_size": (64, 16_384), "embedding": (1, 256)}
FIRST_BATCHES = (128, 4096)  # the range of the first batch size
STEPS_PER_EPOCH = 100  # the first batch size gives about this number of steps


def first_settings(experiment: Experiment, train: Split) -> Experiment:
    """Return an experiment with the batch size and the net_l2 to start with on these training rows."""
    rows, clicks = len(train), float(train.labels.sum())
    low, high = FIRST_BATCHES
    batch_size = min(high, max(low, 2 ** round(math.log2(max(1, rows / STEPS_PER_EPOCH)))))
    net_l2 = within("net_l2", first_net_l2(clicks, rows))
    return changed(changed(experiment, "batch_size", batch_size), "net_l2", net_l2)


def neighbors(experiment: Experiment, key: str, step: float) -> list[Experiment]:
    """Return the experiment with a lower and with a higher value of one setting.

    Values that the model does not accept, such as a width that cannot be split into its heads, are left out. If the
    model does not have the setting, the list is empty.

    Args:
        experiment: The experiment.
        key: The setting.
        step: The ratio between neighboring values.
    """
    if (value := value_of(experiment, key)) is None:
        return []
    found = []
    for candidate in (value / step, value * step):
        typed = round(candidate) if isinstance(value, int) else candidate
        if (valid := within(key, typed)) != value:
            try:
                found.append(changed(experiment, key, valid))
            except ValueError:
                continue
    return found


def within(key: str, value: Any) -> Any:
    """Return a value in the range of a setting. Fractions are rounded to two significant digits."""
    low, high = RANGES.get(key, (value, value))
    clipped = min(high, max(low, value))
    return clipped if isinstance(value, int) else float(f"{clipped:.2g}")


def value_of(experiment: Experiment, key: str) -> Any:
    """Return the value of a key of [model] or [training], or None if the model has no such key."""
    return getattr(section_of(experiment, key), key, None)


def section_of(experiment: Experiment, key: str) -> Any:
    """Return the [model] or [training] section, whichever has the key."""
    return experiment.training if key in experiment.training.__struct_fields__ else experiment.model


def changed(experiment: Experiment, key: str, value: Any) -> Experiment:
    """Return the experiment with a different value for a key of [model] or [training].

    Raises:
        ValueError: If the value is invalid.
    """
    section = section_of(experiment, key)
    name = "training" if section is experiment.training else "model"
    return msgspec.structs.replace(experiment, **{name: msgspec.structs.replace(section, **{key: value})})
