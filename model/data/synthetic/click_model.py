"""The click model behind the generated log: what a good model has to find out."""

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]

CLICK_RATE = 0.048
LOGIT_STD = 1.25  # over the impressions; an AUC of about 0.80 for who knows the true probabilities

# Standard deviation of each field's own effect on the logit, over the impressions. An ad's own is
# small: what matters is its campaign, advertiser, category and format, so that an ad which training
# never saw can be scored.
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
# Pairs of fields: (rank of the latent vectors, standard deviation).
PAIRS = {
    ("age_band", "category"): (1, 0.35),
    ("device", "format"): (1, 0.3),
    ("hour", "category"): (1, 0.1),
    ("country", "language"): (1, 0.25),
}
# A user's taste, in addition, meets what an ad is about: its campaign's theme and a little of its own.
TASTE_RANK = 4
TASTE_STD = 0.04
# Of a number that was normalised by its usual mean and standard deviation: (mean, std, effect).
NUMBERS = {"session_depth": (4.0, 3.5, -0.15), "bid": (2.3, 1.2, 0.15)}


def click_probability(rng: np.random.Generator, codes: dict[str, Codes], numbers: dict[str, Floats]) -> Floats:
    """float64 [impressions], from the codes of each categorical field and the numbers (NaN: missing, no effect)."""
    logit = np.zeros(len(codes["user"]))
    for field, std in MAIN.items():
        logit += _scaled(_latent(rng, codes[field], 1)[:, 0], std)
    for (left, right), (rank, std) in PAIRS.items():
        logit += _scaled(_meeting(_latent(rng, codes[left], rank), _latent(rng, codes[right], rank)), std)
    theme = _latent(rng, codes["campaign"], TASTE_RANK) + 0.3 * _latent(rng, codes["ad"], TASTE_RANK)
    logit += _scaled(_meeting(_latent(rng, codes["user"], TASTE_RANK), theme), TASTE_STD)
    for field, (mean, std, effect) in NUMBERS.items():
        logit += effect * np.nan_to_num((numbers[field] - mean) / std)
    return _with_click_rate(_scaled(logit, LOGIT_STD))


def _latent(rng: np.random.Generator, codes: Codes, rank: int) -> Floats:
    """float64 [impressions, rank]: a random vector for each code."""
    vectors: Floats = rng.standard_normal((int(codes.max()) + 1, rank))
    return vectors[codes]


def _meeting(left: Floats, right: Floats) -> Floats:
    product: Floats = np.einsum("ir,ir->i", left, right)
    return product


def _scaled(effect: Floats, std: float) -> Floats:
    """Shifted to mean 0 and stretched to `std`, so that a table above means the same under every seed."""
    spread = effect.std() or 1.0
    scaled: Floats = (effect - effect.mean()) * (std / spread)
    return scaled


def _with_click_rate(logit: Floats) -> Floats:
    """Probabilities whose mean is CLICK_RATE: bisection for the one intercept that does it."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        if _sigmoid(logit + middle).mean() < CLICK_RATE:
            low = middle
        else:
            high = middle
    return _sigmoid(logit + low)


def _sigmoid(logit: Floats) -> Floats:
    probability: Floats = 1 / (1 + np.exp(-logit))
    return probability
