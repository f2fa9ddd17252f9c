"""The simulation of ctr-gate: short here, and as in the report when marked `full`."""

import numpy as np
import pytest

from benchmarks.gate import WORLD, World, expected_loss, known_probability, results, share, shift, simulate
from contract.calibration import sigmoid
from export.gate.verdict import Limits


def test_the_worse_model_is_worse_by_exactly_the_margin() -> None:
    known = known_probability(WORLD.base())
    assert known.mean() == pytest.approx(WORLD.click_rate)
    random = np.random.default_rng(1)
    losses = []
    for error in (WORLD.error, WORLD.worse_error()):
        logits = (
            np.log(known / (1 - known))[:, np.newaxis] + shift(known, error) + random.normal(0, error, (20, 100_000))
        )
        ctr = sigmoid(logits)
        drawn = float((-known[:, np.newaxis] * np.log(ctr) - (1 - known[:, np.newaxis]) * np.log(1 - ctr)).mean())
        assert drawn == pytest.approx(expected_loss(known, error), rel=1e-4)
        assert ctr.mean() == pytest.approx(WORLD.click_rate, rel=1e-3)
        losses.append(expected_loss(known, error))
    assert losses[1] / losses[0] - 1 == pytest.approx(WORLD.margin)


def test_drawing_units_is_right_and_drawing_rows_is_wrong() -> None:
    """A tenth of the units, with a margin that is ten times as large."""
    world = World(error=0.1, margin=0.01)
    trials = simulate(60, world, units=500, limits=Limits(margin=0.01, tolerance=0.1, segment_tolerance=0.2))
    assert share(trials, "worse_passes") <= 0.11
    assert share(trials, "equal_passes") >= 0.8
    assert share(trials, "covered") >= 0.88
    assert share(trials, "worse_covered") >= 0.88
    assert share(trials, "auc_covered") >= 0.88
    assert share(trials, "row_covered") < 0.9


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_the_gate_reaches_its_targets() -> None:
    trials = simulate(1000)
    assert [row for row in results(trials) if row[-1] != "pass"] == []
