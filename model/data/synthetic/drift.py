"""What changes from day to day in the simulated traffic: the effects of ads, the click rate, and the ads themselves."""

from dataclasses import dataclass

import numpy as np

from model.data.synthetic.click_model import Codes, Floats
from model.data.synthetic.generate import CAMPAIGNS, CATEGORIES

MAX_DAYS = 366


@dataclass(frozen=True)
class DriftStds:
    """How fast the traffic changes.

    Attributes:
        category: Standard deviation of the daily change of each ad category's effect on the logit of a click.
        base_rate: Standard deviation of the daily change of an effect that all ads share.
        new_campaigns: The share of the campaigns that end each night and are replaced with new ones.
        campaign: Standard deviation of the effects of campaigns that start during the simulation.
    """

    category: float
    base_rate: float
    new_campaigns: float
    campaign: float


class Drift:
    """The changes of one simulation. There are none on its first day."""

    def __init__(self, rng: np.random.Generator, seed: int, stds: DriftStds) -> None:
        """Draw the changes of all days.

        Args:
            rng: The generator of the categories' effects.
            seed: The seed of all other changes.
            stds: How fast the traffic changes.
        """
        self._category = random_walk(rng, stds.category, len(CATEGORIES))
        rng = np.random.default_rng([seed, 4])
        self._base_rate = random_walk(rng, stds.base_rate, 1)[:, 0]
        is_replaced = rng.random((MAX_DAYS, CAMPAIGNS)) < stds.new_campaigns
        is_replaced[0] = False
        self._generation: Codes = np.cumsum(is_replaced, axis=0, dtype=np.int64)
        # The shift keeps the mean probability about the same, because small probabilities are nearly exp(logit).
        self._campaign = rng.normal(-(stds.campaign**2) / 2, stds.campaign, (MAX_DAYS, CAMPAIGNS))
        self._campaign[0] = 0  # the campaigns of the first day have the effects of the generated log

    def generation(self, day: Codes, campaign: Codes) -> Codes:
        """Return how often each candidate's campaign was replaced before, (N, C).

        Args:
            day: The day of each request, counted from the first one, (N).
            campaign: The code of each candidate's campaign, (N, C).
        """
        generation: Codes = self._generation[day[:, None], campaign]
        return generation

    def effect(self, day: Codes, category: Codes, campaign: Codes) -> Floats:
        """Return the effect of all changes on the logit of each candidate, (N, C). See generation()."""
        generation = self.generation(day, campaign)
        category_effect = self._category[day[:, None], category]
        effect: Floats = category_effect + self._base_rate[day][:, None] + self._campaign[generation, campaign]
        return effect


def random_walk(rng: np.random.Generator, std: float, count: int) -> Floats:
    """Return `count` random walks that start at 0, (MAX_DAYS, count)."""
    steps = rng.normal(0, std, (MAX_DAYS, count))
    steps[0] = 0
    walk: Floats = np.cumsum(steps, axis=0)
    return walk
