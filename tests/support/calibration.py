"""Scored rows for tests of ctr-calibrate, whose true probabilities are known."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.calibration import sigmoid
from export.calibrate.rows import Floats, Rows


def make_rows(
    logit: Floats,
    label: NDArray[Any],
    importance: Floats | None = None,
    negative_rate: float = 1.0,
    segment: NDArray[np.int64] | None = None,
) -> Rows:
    """Return rows without cold candidates. The default is a log without weights."""
    logit = np.asarray(logit, np.float64)
    return Rows(
        logit=logit,
        label=np.asarray(label, np.float64),
        importance=np.ones(len(logit)) if importance is None else importance,
        negative_rate=negative_rate,
        cold=np.zeros(len(logit), bool),
        segment=segment,
    )


@dataclass(frozen=True)
class Simulation:
    """Rows with their true probabilities."""

    rows: Rows
    truth: Floats


def simulate(
    seed: int,
    count: int,
    *,
    mean: float = -3.5,
    std: float = 1.2,
    slope: float = 1.0,
    shift: float = 0.0,
    segment_shifts: tuple[float, ...] = (),
    negative_rate: float = 1.0,
) -> Simulation:
    """Draw rows of a model whose error is known.

    Args:
        seed: The seed of all random numbers.
        count: The number of rows before the non-clicks are sampled.
        mean: The mean of the true logits.
        std: Their standard deviation.
        slope: The model's logits are slope * (true logit) + shift, without the segments' shifts.
        shift: See slope.
        segment_shifts: What is added to the true logit in each segment. The ids are 0, 1 and so on.
        negative_rate: The share of the non-clicks that are kept.
    """
    random = np.random.default_rng(seed)
    base = random.normal(mean, std, count)
    segment = random.integers(0, len(segment_shifts), count) if segment_shifts else None
    true = sigmoid(base if segment is None else base + np.array(segment_shifts)[segment])
    label = (random.random(count) < true).astype(np.float64)
    kept = (label == 1) | (random.random(count) < negative_rate)
    rows = make_rows(slope * base + shift, label, negative_rate=negative_rate, segment=segment)
    return Simulation(rows.select(kept), true[kept])
