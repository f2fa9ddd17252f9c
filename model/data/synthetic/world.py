"""The users, ads and effects of the generated log, for traffic that continues it."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.data.readers.generated import CANDIDATE
from model.data.synthetic.click_model import ClickModel, Codes, Floats
from model.data.synthetic.generate import (
    CANDIDATES,
    MISSING_SHARE,
    NAMES,
    UNKNOWN_AGE,
    USERS,
    Plan,
    draw,
    draw_impressions,
    split_at,
)

DEMO_SEED, DEMO_REQUESTS = 1, 120_000  # the log that deploy/demo was trained on: `make demo-bundle`


class World:
    """The ads, users and effects of a generated log."""

    def __init__(self, seed: int, plan: Plan) -> None:
        log = draw_impressions(np.random.default_rng(seed), plan)
        self._clicks: ClickModel = log.clicks
        self._users = np.unique(log.codes["user"])  # the most inactive users are not in the log
        self._user_names = [str(NAMES["user"][code]) for code in self._users.tolist()]
        self._user = {name: attribute(log.codes, "user", name) for name in ("age_band", "country", "device")}
        self._ad_counts = np.bincount(log.codes["ad"]).astype(np.float64)
        self._ad = {name: attribute(log.codes, "ad", name) for name in CANDIDATE if name not in ("bid", "sensitive")}
        campaign = log.codes["campaign"]
        self._usual_bid = np.bincount(campaign, log.numbers["bid"]) / np.bincount(campaign)
        self._slot, self._sensitive, self._private = (
            np.bincount(log.codes[name]).astype(np.float64) for name in ("slot", "sensitive", "private_mode")
        )

    def user_name(self, user: int) -> str:
        """Return a user's name. Users that the log does not have get names that it does not have either."""
        return self._user_names[user] if user < len(self._users) else f"u{USERS + 1 + user}"

    def context(self, rng: np.random.Generator, user: Codes) -> tuple[dict[str, Codes], Floats]:
        """Draw the contexts of requests of these users, without the time: codes and session_depth, (N) each.

        Users beyond those of the log are new to a model that was trained on it. They share a known user's effects.
        """
        count = len(user)
        known = self._users[user % len(self._users)]
        codes = {name: column[known] for name, column in self._user.items()}
        codes["age_band"] = np.where(rng.random(count) < MISSING_SHARE, UNKNOWN_AGE, codes["age_band"])
        other = rng.integers(0, len(NAMES["device"]), count)
        codes |= {
            "user": known,
            "device": np.where(rng.random(count) < 0.8, codes["device"], other),
            "slot": draw(rng, self._slot, count),
            "private_mode": draw(rng, self._private, count),
            "exchange": np.zeros(count, np.int64),
        }
        depth = rng.geometric(0.25, count).astype(np.float64)
        return codes, np.where(rng.random(count) < MISSING_SHARE, np.nan, depth)

    def candidates(self, rng: np.random.Generator, count: int) -> tuple[dict[str, Codes], Floats]:
        """Draw CANDIDATES ads for each of `count` requests: codes and bid, (count, CANDIDATES) each."""
        shape = (count, CANDIDATES)
        ad = draw(rng, self._ad_counts, count * CANDIDATES).reshape(shape)
        codes = {name: column[ad] for name, column in self._ad.items()}
        codes["sensitive"] = draw(rng, self._sensitive, count * CANDIDATES).reshape(shape)
        bid = self._usual_bid[codes["campaign"]] * rng.lognormal(0.0, 0.35, shape)
        return codes, np.maximum(0.01, np.round(bid, 2))

    def logit(self, codes: dict[str, Codes], numbers: dict[str, Floats]) -> Floats:
        """Return the effects of the log on the logit, (N, C), for arrays as in Requests."""
        shape = numbers["bid"].shape

        def rows(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return {
                name: np.broadcast_to(column if column.ndim == 2 else column[:, None], shape).ravel()
                for name, column in columns.items()
            }

        return self._clicks.logit(rows(codes), rows(numbers)).reshape(shape)


@cache
def demo_world() -> World:
    """Return the world that the model in deploy/demo was trained on."""
    return World(DEMO_SEED, Plan(split_at(DEMO_REQUESTS)))


def attribute(codes: Mapping[str, Codes], key: str, name: str) -> Codes:
    """Return the code of a field for each code of another one, such as the campaign of each ad: the last in the log."""
    column = np.zeros(int(codes[key].max()) + 1, np.int64)
    column[codes[key]] = codes[name]
    return column
