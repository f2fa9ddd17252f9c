"""How often ctr-gate is right: simulated pairs of models on units with persistent, heavy-tailed effects.

Each pair is compared on new units. Both models know the effect of the ad, and neither knows that of the unit. Each
makes an error that is the same in all rows of a unit, so the losses of these rows are correlated. The errors of the two
models are independent. A larger error makes a model worse by exactly the margin, in expectation.
"""

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq  # type: ignore[import-untyped]

from benchmarks import RESULTS
from contract.calibration import sigmoid
from export.gate.figures import Estimate, estimate, measure
from export.gate.rows import ScoredRows
from export.gate.verdict import ERRORS_TO_DECIDE, Limits, decide
from loadtest.report import Table, write_report
from model.experiments.bootstrap import resampled_sums
from model.training.metrics import logloss_by_row

PAIRS = 1000
UNITS = 5_000
ROW_DRAWS = 200  # of the bootstrap that draws rows, which costs as much as eight of those that draw units
ADS = 0.6 * np.linspace(-1.6, 1.6, 20)  # the effects of the ads on the logit
MIN_ROWS, MAX_ROWS, TAIL = 3.0, 100, 1.3  # the rows of a unit: a Pareto distribution, cut off
SPREADS, SHARES = (0.4, 1.2), (0.9, 0.1)  # the effect of a unit on the logit: a mixture of normal distributions
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(64)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """The population from which units and the errors of models are drawn.

    Attributes:
        click_rate: The mean click probability.
        error: The standard deviation of the errors of the old model and of an equal model, on the logit.
        margin: How much worse the worse model is, relative to the normalized entropy of the old one.
    """

    click_rate: float = 0.2
    error: float = 0.03
    margin: float = 0.001

    def base(self) -> float:
        """Return the logit of an average ad for an average unit."""
        return float(brentq(lambda base: known_probability(base).mean() - self.click_rate, -12, 5))

    def worse_error(self) -> float:
        """Return the standard deviation of the errors of a model that is worse by exactly the margin."""
        known = known_probability(self.base())
        target = (1 + self.margin) * expected_loss(known, self.error)
        return float(brentq(lambda error: expected_loss(known, error) - target, self.error, 1.5))


WORLD = World()


@dataclass(frozen=True)
class Trial:
    """What happened to one pair of equal models, and to a worse model on the same rows.

    Attributes:
        rows: The number of rows.
        clicks: The number of clicks.
        equal_passes: Whether the equal model passed.
        worse_passes: Whether the worse model passed.
        covered: Whether the 95% interval of the change of entropy contains the true one, for the equal model.
        worse_covered: The same for the worse model.
        auc_covered: Whether the 95% interval of the difference of AUC contains 0, for the equal model.
        row_covered: As `covered`, with a bootstrap that draws rows.
        error: The standard error of the change of entropy, for the equal model.
        row_error: The same, with a bootstrap that draws rows.
    """

    rows: int
    clicks: int
    equal_passes: bool
    worse_passes: bool
    covered: bool
    worse_covered: bool
    auc_covered: bool
    row_covered: bool
    error: float
    row_error: float


def known_probability(base: float) -> Floats:
    """Return the click probability of each ad for a unit whose effect is not known, (ads)."""
    found = np.zeros(len(ADS))
    for spread, share in zip(SPREADS, SHARES, strict=True):
        logits = base + ADS[:, np.newaxis] + spread * NODES
        found += share * (sigmoid(logits) @ NODE_WEIGHTS) / NODE_WEIGHTS.sum()
    return found


def logits_of(known: Floats) -> Floats:
    """Return the logits of probabilities."""
    return np.log(known) - np.log1p(-known)


def shift(known: Floats, error: float) -> float:
    """Return the shift of the logit with which a model with these errors predicts the click rate on average."""

    def excess(shift: float) -> float:
        ctr = sigmoid(logits_of(known)[:, np.newaxis] + shift + error * NODES) @ NODE_WEIGHTS / NODE_WEIGHTS.sum()
        return float(ctr.mean() - known.mean())

    return float(brentq(excess, -3, 3))


def expected_loss(known: Floats, error: float) -> float:
    """Return the expected logloss of a model with errors of this standard deviation."""
    ctr = sigmoid(logits_of(known)[:, np.newaxis] + shift(known, error) + error * NODES)
    losses = -known[:, np.newaxis] * np.log(ctr) - (1 - known[:, np.newaxis]) * np.log1p(-ctr)
    return float((losses @ NODE_WEIGHTS / NODE_WEIGHTS.sum()).mean())


def trial(seed: int, world: World, units: int, limits: Limits) -> Trial:
    """Draw units and models, and compare the models."""
    random = np.random.default_rng(seed)
    base = world.base()
    known = known_probability(base)
    sizes = np.minimum(MIN_ROWS * (1 + random.pareto(TAIL, units)), MAX_ROWS).astype(np.int64)
    unit = np.repeat(np.arange(units), sizes)
    ad = random.integers(len(ADS), size=len(unit))
    spread = np.array(SPREADS)[random.choice(len(SPREADS), units, p=SHARES)]
    true = sigmoid(base + ADS[ad] + random.normal(0, spread)[unit])
    labels = (random.random(len(unit)) < true).astype(np.float64)

    def model(error: float) -> Floats:
        errors = random.normal(0, error, units)
        return sigmoid(logits_of(known)[ad] + shift(known, error) + errors[unit])

    old, equal, worse = model(world.error), model(world.error), model(world.worse_error())
    weights = np.ones(len(unit))
    figures = [
        measure(ScoredRows(labels, weights, new, old, unit, "unit", units, {}), seed=seed) for new in (equal, worse)
    ]
    losses = np.column_stack([logloss_by_row(labels, ctr) for ctr in (equal, old)])
    total, drawn = losses.sum(axis=0)[np.newaxis], resampled_sums(losses, ROW_DRAWS, seed)
    by_row = estimate(*(table[:, 0] / table[:, 1] - 1 for table in (total, drawn)))
    return Trial(
        rows=len(unit),
        clicks=int(labels.sum()),
        equal_passes=decide(figures[0], limits)[0] == "pass",
        worse_passes=decide(figures[1], limits)[0] == "pass",
        covered=contains(figures[0].normalized_entropy, 0),
        worse_covered=contains(figures[1].normalized_entropy, world.margin),
        auc_covered=contains(figures[0].auc, 0),
        row_covered=contains(by_row, 0),
        error=figures[0].normalized_entropy.error,
        row_error=by_row.error,
    )


def contains(found: Estimate, truth: float) -> bool:
    """Return whether the two-sided interval contains the truth."""
    return found.low <= truth <= found.high


def simulate(
    pairs: int, world: World = WORLD, units: int = UNITS, limits: Limits | None = None, processes: int = 1
) -> list[Trial]:
    """Return the trials with the seeds from 1 to `pairs`."""
    one = partial(trial, world=world, units=units, limits=limits or Limits(margin=world.margin))
    seeds = range(1, pairs + 1)
    if processes == 1:
        return [one(seed) for seed in seeds]
    with get_context("spawn").Pool(processes) as pool:
        return pool.map(one, seeds, chunksize=5)


def share(trials: Sequence[Trial], name: str) -> float:
    """Return the share of trials in which an attribute is true."""
    return float(np.mean([getattr(trial, name) for trial in trials]))


def two_errors(probability: float, count: int) -> float:
    """Return two standard errors of a share."""
    return 2 * math.sqrt(probability * (1 - probability) / count)


def results(trials: Sequence[Trial]) -> list[list[Any]]:
    """Return the rows of the table of results: what, measured, target, and whether the target is reached."""
    count = len(trials)
    slack, coverage = two_errors(0.05, count), two_errors(0.95, count)
    is_wrong = share(trials, "row_covered") < 0.9
    near = {name: abs(share(trials, name) - 0.95) <= coverage for name in ("covered", "worse_covered", "auc_covered")}
    rows = [
        ("worse by the margin: passes", "worse_passes", "at most 5%", share(trials, "worse_passes") <= 0.05 + slack),
        ("equal: passes", "equal_passes", "at least 80%", share(trials, "equal_passes") >= 0.8),
        ("drawing units: coverage of the change of entropy, equal", "covered", "95%", near["covered"]),
        ("drawing units: the same, worse", "worse_covered", "95%", near["worse_covered"]),
        ("drawing units: coverage of the difference of AUC, equal", "auc_covered", "95%", near["auc_covered"]),
        ("drawing rows: coverage of the change of entropy, equal", "row_covered", "< 90%", is_wrong),
    ]
    return [
        [what, f"{share(trials, name):.1%}", target, "pass" if reached else "FAIL"]
        for what, name, target, reached in rows
    ]


def needed() -> Iterator[list[Any]]:
    """Yield how many rows a gate needs: for click rates and errors of models, without and with the simulated units.

    An equal model passes the check of the entropy in 80% of cases.
    """
    for click_rate in (0.01, 0.05, 0.2):
        for error in (0.05, 0.1, 0.2):
            world = World(click_rate, error)
            known = known_probability(world.base())
            # To first order, the losses of a row differ by (error of new - error of old) * (probability - click).
            spread = math.sqrt(2) * error * math.sqrt(float((known * (1 - known)).mean()))
            rows = (ERRORS_TO_DECIDE * spread / expected_loss(known, error) / world.margin) ** 2
            yield [f"{click_rate:.0%}", f"{error:g}", f"{rows:,.0f}", f"{rows * click_rate:,.0f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulation, and write its report. Return 1 if a target is not reached."""
    parser = argparse.ArgumentParser("python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"the number of pairs; default: {PAIRS}")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one for each CPU")
    options = parser.parse_args(argv)
    world = WORLD
    trials = simulate(options.pairs, world, processes=options.processes)
    rows, clicks = (np.mean([getattr(trial, name) for trial in trials]) for name in ("rows", "clicks"))
    design = np.mean([(trial.error / trial.row_error) ** 2 for trial in trials])
    text = (
        f"{len(trials):,} simulated pairs of models with independent errors, each on {UNITS:,} new units with on "
        f"average {rows:,.0f} impressions and {clicks:,.0f} clicks. The margin is {world.margin:.1%}. Units have "
        f"persistent, heavy-tailed effects, and {MIN_ROWS:.0f} to {MAX_ROWS} impressions. A model's error on the "
        f"logit, with a standard deviation of {world.error:g}, or {world.worse_error():.3f} for the worse model, is "
        f"the same in all rows of a unit. Units multiply the variance of the change by {design:.1f}. Targets hold up "
        f"to two standard errors. Drawing rows uses {ROW_DRAWS} resamples, and drawing units 1,000. The second table "
        "shows how many independent rows an equal model needs to pass the check of the normalized entropy in 80% of "
        f"cases. With units, multiply them by that factor, here {design:.1f}."
    )
    tables = [
        Table("", ["what", "measured", "target", "result"], results(trials)),
        Table("Size", ["click rate", "error on the logit", "independent rows", "clicks"], list(needed())),
    ]
    command = "python -m benchmarks.gate" + (f" --pairs {options.pairs}" if options.pairs != PAIRS else "")
    write_report(RESULTS / "gate.md", "How often ctr-gate is right", text, tables, ["numpy", "scipy"], command)
    return 0 if all(row[-1] == "pass" for row in results(trials)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
