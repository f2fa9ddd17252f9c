"""The click model of the synthetic log: the effects that a good model has to learn."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]

CLICK_RATE = 0.048
LOGIT_STD = 1.25  # over the impressions; this gives the true probabilities an AUC of about 0.80

# The standard deviation, over the impressions, of each field's own effect on the logit. An ad's own effect is small,
# but its campaign, advertiser, category and format matter, so that ads that are not in the training set can be scored.
MAIN = {
    "user": 0.03,
    "age_band": 0.2,
    "country": 0.1,
    "device": 0.25,
    "slot": 0.6,
    "hour": 0.2,
    "weekday": 0.05,
    "private_mode": 0.05,
    "ad": 0.03,
    "campaign": 0.05,
    "advertiser": 0.15,
    "category": 0.45,
    "format": 0.45,
    "language": 0.05,
    "sensitive": 0.05,
}
# For each pair of fields: the rank of the latent vectors, and the standard deviation of the effect.
PAIRS = {
    ("age_band", "category"): (1, 0.35),
    ("device", "format"): (1, 0.3),
    ("hour", "category"): (1, 0.1),
    ("country", "language"): (1, 0.25),
}
# In addition, a user's taste interacts with the topic of the ad: the topic of its campaign, plus a smaller part that
# only the ad has.
TASTE_RANK = 4
TASTE_STD = 0.04
EFFECT_STDS = (*MAIN.values(), *(std for _, std in PAIRS.values()), TASTE_STD)
# The mean and standard deviation that normalize a numeric field, and its effect.
NUMBERS = {"session_depth": (4.0, 3.5, -0.15), "bid": (2.3, 1.2, 0.15)}


class ClickModel:
    """The effects of all users, ads and situations on the logit of a click.

    They are sampled once, for the impressions of a log. After that, they apply to any impression with the same codes,
    so that new traffic can continue the log.
    """

    def __init__(
        self, rng: np.random.Generator, codes: dict[str, Codes], numbers: dict[str, Floats], click_rate: float
    ) -> None:
        """Sample the effects.

        Args:
            rng: The random generator.
            codes: The codes of each categorical field, (impressions) each.
            numbers: The values of each numeric field. NaN means missing and has no effect.
            click_rate: The mean click probability of these impressions.
        """
        self._main = {field: draw_vectors(rng, codes[field], 1) for field in MAIN}
        self._pairs = {
            (left, right): (draw_vectors(rng, codes[left], rank), draw_vectors(rng, codes[right], rank))
            for (left, right), (rank, _) in PAIRS.items()
        }
        self._campaign_topic = draw_vectors(rng, codes["campaign"], TASTE_RANK)
        self._ad_topic = draw_vectors(rng, codes["ad"], TASTE_RANK)
        self._taste = draw_vectors(rng, codes["user"], TASTE_RANK)
        # The scales make the effects' standard deviations over these impressions those of the constants above.
        raw = self._raw_effects(codes)
        self._scales = [Scale.to(effect, std) for effect, std in zip(raw, EFFECT_STDS, strict=True)]
        total = self._unscaled_logit(codes, numbers)
        self._total_scale = Scale.to(total, LOGIT_STD)
        self._intercept = 0.0
        self._intercept = find_intercept(self.logit(codes, numbers), click_rate)

    def logit(self, codes: dict[str, Codes], numbers: dict[str, Floats]) -> Floats:
        """Return the logit of each impression's click probability, float64 (impressions)."""
        return self._total_scale(self._unscaled_logit(codes, numbers)) + self._intercept

    def _unscaled_logit(self, codes: dict[str, Codes], numbers: dict[str, Floats]) -> Floats:
        logit = np.zeros(len(codes["user"]))
        for effect, scale in zip(self._raw_effects(codes), self._scales, strict=True):
            logit += scale(effect)
        for field, (mean, std, effect_of_std) in NUMBERS.items():
            logit += effect_of_std * np.nan_to_num((numbers[field] - mean) / std)
        return logit

    def _raw_effects(self, codes: dict[str, Codes]) -> Iterator[Floats]:
        """Yield the effects before scaling, (impressions) each, in the order of EFFECT_STDS."""
        for field, vectors in self._main.items():
            yield vectors[codes[field], 0]
        for (left, right), (left_vectors, right_vectors) in self._pairs.items():
            yield dot_rows(left_vectors[codes[left]], right_vectors[codes[right]])
        topic = self._campaign_topic[codes["campaign"]] + 0.3 * self._ad_topic[codes["ad"]]
        yield dot_rows(self._taste[codes["user"]], topic)


@dataclass(frozen=True)
class Scale:
    """A shift and a factor: `(effect - mean) * factor`."""

    mean: float
    factor: float

    @classmethod
    def to(cls, effect: Floats, std: float) -> "Scale":
        """Return the scale that gives an effect the mean 0 and the standard deviation `std`."""
        return cls(effect.mean(), std / (effect.std() or 1.0))

    def __call__(self, effect: Floats) -> Floats:
        return (effect - self.mean) * self.factor


def draw_vectors(rng: np.random.Generator, codes: Codes, rank: int) -> Floats:
    """Sample a vector for each code that may occur, float64 (codes, rank)."""
    return rng.standard_normal((int(codes.max()) + 1, rank))


def dot_rows(left: Floats, right: Floats) -> Floats:
    """Return the inner products of corresponding rows, (rows)."""
    product: Floats = np.einsum("ir,ir->i", left, right)
    return product


def find_intercept(logit: Floats, click_rate: float) -> float:
    """Return the intercept that makes the mean probability `click_rate`, found by bisection."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        if sigmoid(logit + middle).mean() < click_rate:
            low = middle
        else:
            high = middle
    return low


def sigmoid(logit: Floats) -> Floats:
    """Convert logits to probabilities."""
    probability: Floats = 1 / (1 + np.exp(-logit))
    return probability
