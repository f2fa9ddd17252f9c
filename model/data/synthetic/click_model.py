"""The click model of the synthetic log: the effects that a good model has to learn."""

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
# The mean and standard deviation that normalize a numeric field, and its effect.
NUMBERS = {"session_depth": (4.0, 3.5, -0.15), "bid": (2.3, 1.2, 0.15)}


def click_probability(
    rng: np.random.Generator, codes: dict[str, Codes], numbers: dict[str, Floats], click_rate: float = CLICK_RATE
) -> Floats:
    """Return the click probability of each impression, float64 (impressions).

    Args:
        rng: The random generator that samples the effects.
        codes: The codes of each categorical field.
        numbers: The values of each numeric field. NaN means missing and has no effect.
        click_rate: The mean of the probabilities.
    """
    logit = np.zeros(len(codes["user"]))
    for field, std in MAIN.items():
        logit += scale(draw_vectors(rng, codes[field], 1)[:, 0], std)
    for (left, right), (rank, std) in PAIRS.items():
        logit += scale(dot_rows(draw_vectors(rng, codes[left], rank), draw_vectors(rng, codes[right], rank)), std)
    topic = draw_vectors(rng, codes["campaign"], TASTE_RANK) + 0.3 * draw_vectors(rng, codes["ad"], TASTE_RANK)
    logit += scale(dot_rows(draw_vectors(rng, codes["user"], TASTE_RANK), topic), TASTE_STD)
    for field, (mean, std, effect) in NUMBERS.items():
        logit += effect * np.nan_to_num((numbers[field] - mean) / std)
    return with_click_rate(scale(logit, LOGIT_STD), click_rate)


def draw_vectors(rng: np.random.Generator, codes: Codes, rank: int) -> Floats:
    """Sample a vector for each code, and return the vector of each impression, float64 (impressions, rank)."""
    vectors: Floats = rng.standard_normal((int(codes.max()) + 1, rank))
    return vectors[codes]


def dot_rows(left: Floats, right: Floats) -> Floats:
    """Return the inner products of corresponding rows, (rows)."""
    product: Floats = np.einsum("ir,ir->i", left, right)
    return product


def scale(effect: Floats, std: float) -> Floats:
    """Shift an effect to mean 0 and scale it to `std`, so that the constants above apply to every seed."""
    scaled: Floats = (effect - effect.mean()) * (std / (effect.std() or 1.0))
    return scaled


def with_click_rate(logit: Floats, click_rate: float) -> Floats:
    """Return probabilities whose mean is `click_rate`. Bisection finds the required intercept."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        if sigmoid(logit + middle).mean() < click_rate:
            low = middle
        else:
            high = middle
    return sigmoid(logit + low)


def sigmoid(logit: Floats) -> Floats:
    """Convert logits to probabilities."""
    probability: Floats = 1 / (1 + np.exp(-logit))
    return probability
