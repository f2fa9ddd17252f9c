"""Write a synthetic ad log that is free to use: DIR/generated/{train,valid,test}.parquet.

Every request shows five candidates. `click` is sampled with probability `true_ctr`, so a model's probabilities can be
compared with the true ones. The log resembles real logs: a few users and ads are frequent and many are rare, values are
missing, some fields hardly vary, and `test` contains new ads. With --next-day, a second log with the same users, ads
and effects continues the first one on the following day, in DIR/generated-next-day. A fifth of its impressions show
ads that the first log's train and valid do not contain.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import Progress

from model.atomic_folder import check_replaceable, new_folder
from model.data.data_folder import add_data_argument
from model.data.readers.generated import CANDIDATE, CONTEXT, LABEL, REQUEST, TRUE_CTR
from model.data.readers.log import SPLITS
from model.data.synthetic.click_model import CLICK_RATE, ClickModel, Codes, Floats, sigmoid

FOLDER, NEXT_DAY = "generated", "generated-next-day"
MARKER = "test.parquet"  # the last file to be written
CANDIDATES = 5
USERS, ADS, NEW_ADS, CAMPAIGNS, ADVERTISERS = 5000, 2000, 100, 100, 25
ZIPF = 1.1
DAYS = 28
NEW_AD_SHARE = 0.05  # the share of impressions in test that show a new ad
NEXT_DAY_ADS, NEXT_DAY_SHARE = 100, 0.2  # ads that start on the next day; the share of its impressions with new ads
MISSING_SHARE = 0.05
RARE_SHARE = 0.01
SHARES = (0.8, 0.1, 0.1)  # the shares of requests in train, valid and test, in time order
MIN_REQUESTS = 100  # in all splits together
MIN_SPLIT_REQUESTS = 10

CATEGORIES = ["cars", "travel", "food", "fashion", "games", "home", "sports", "health", "books", "phones"]
NAMES: dict[str, list[str] | list[int] | list[bool]] = {
    "user": [f"u{n}" for n in range(1, USERS + 1)],
    "age_band": ["18-24", "25-34", "35-44", "45-54", "55-64", "65+"],
    "country": ["germany", "france", "spain", "italy", "poland", "austria", "belgium", "sweden"],
    "device": ["phone", "tablet", "desktop"],
    "slot": ["top", "sidebar", "in-article", "bottom", "interstitial"],
    "hour": list(range(24)),
    "weekday": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
    "private_mode": [False, True],
    "exchange": ["main"],
    "ad": [f"ad-{n}" for n in range(1, ADS + NEXT_DAY_ADS + 1)],
    "campaign": [f"campaign-{n}" for n in range(1, CAMPAIGNS + 1)],
    "advertiser": [f"advertiser-{n}" for n in range(1, ADVERTISERS + 1)],
    "category": CATEGORIES,
    "format": ["banner", "native", "video", "carousel", "text"],
    "language": ["english", "german", "french", "spanish", "italian", "polish"],
    "sensitive": ["no", "yes"],
}
UNKNOWN_AGE = len(NAMES["age_band"])  # the code of a missing age band
# The relative number of requests in each hour of the day.
HOURS = np.array([3, 2, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 8, 7, 7, 8, 9, 10, 11, 12, 11, 8, 5], float)


def zipf_shares(ranks: int) -> Floats:
    """Return the shares of the ranks 1 to `ranks` in a Zipf distribution, (ranks)."""
    weights = np.arange(1, ranks + 1, dtype=np.float64) ** -ZIPF
    shares: Floats = weights / weights.sum()
    return shares


def draw(rng: np.random.Generator, shares: Floats, size: int) -> Codes:
    """Sample codes, int64 (size). Code c has the probability shares[c] / sum(shares)."""
    edges = np.cumsum(shares / shares.sum())[:-1]
    return np.searchsorted(edges, rng.random(size), side="right")


@dataclass(frozen=True)
class Plan:
    """The size of a log, and its click rate.

    Attributes:
        requests: The number of requests in train, valid and test.
        next_day: The number of requests in the next day's train, valid and test, or () for no second log.
        click_rate: The mean click probability.
    """

    requests: tuple[int, ...]
    next_day: tuple[int, ...] = ()
    click_rate: float = CLICK_RATE

    def __post_init__(self) -> None:
        for splits in (self.requests, self.next_day) if self.next_day else (self.requests,):
            if sum(splits) < MIN_REQUESTS or min(splits) < MIN_SPLIT_REQUESTS:
                raise ValueError(
                    f"requests = {sum(splits)}: use at least {MIN_REQUESTS} requests, and at least "
                    f"{MIN_SPLIT_REQUESTS} in each split. A request has {CANDIDATES} rows."
                )
        if not 0 < self.click_rate < 1:
            raise ValueError(f"click rate {self.click_rate} must be between 0 and 1")

    @property
    def all_requests(self) -> int:
        """The number of requests in both logs."""
        return sum(self.requests) + sum(self.next_day)


def split_at(requests: int) -> tuple[int, int, int]:
    """Return the number of requests in train, valid and test."""
    train, valid, _ = (round(share * requests) for share in SHARES)
    return train, valid, requests - train - valid


def draw_times(rng: np.random.Generator, plan: Plan) -> Codes:
    """Sample the hour of each request since the start of the log, int64 (requests), in ascending order.

    The days are always split in the shares SHARES, even if the requests are not, so that train contains all hours and
    weekdays.
    """
    first = sum(plan.requests)
    if plan.requests == split_at(first):
        time = np.sort(rng.integers(0, DAYS, first) * 24 + draw(rng, HOURS, first))
    else:
        days = np.rint(np.cumsum((0, *SHARES)) * DAYS).astype(int)
        parts = zip(days[:-1], days[1:], plan.requests, strict=True)
        time = np.concatenate([np.sort(rng.integers(a, b, n) * 24 + draw(rng, HOURS, n)) for a, b, n in parts])
    if plan.next_day:
        time = np.append(time, DAYS * 24 + np.sort(draw(rng, HOURS, plan.all_requests - first)))
    return time


def draw_requests(rng: np.random.Generator, plan: Plan) -> tuple[dict[str, Codes], Floats]:
    """Sample the codes of the context's categorical fields and session_depth, (requests) each, in time order."""
    requests, time = plan.all_requests, draw_times(rng, plan)
    user = rng.permutation(USERS)[draw(rng, zipf_shares(USERS), requests)]
    # Age band and country are fixed per user. The device is the user's usual one in most requests.
    age_band = draw(rng, np.array([5, 7, 6, 5, 4, 3.0]), USERS)
    country = draw(rng, np.array([8, 6, 5, 5, 4, 2, 2, 2.0]), USERS)
    usual_device = draw(rng, np.array([6, 1, 3.0]), USERS)
    device = np.where(rng.random(requests) < 0.8, usual_device[user], draw(rng, np.array([6, 1, 3.0]), requests))
    codes = {
        "user": user,
        "age_band": age_band[user],
        "country": country[user],
        "device": device,
        "slot": draw(rng, np.array([3, 2, 3, 1.5, 0.5]), requests),
        "hour": time % 24,
        "weekday": time // 24 % 7,
        "private_mode": draw(rng, np.array([1 - RARE_SHARE, RARE_SHARE]), requests),
        "exchange": np.zeros(requests, np.int64),
    }
    return codes, rng.geometric(0.25, requests).astype(np.float64)


def draw_ads(rng: np.random.Generator, plan: Plan) -> Codes:
    """Sample ad codes, int64 (requests * CANDIDATES).

    Ads with the highest codes are new. In the first log, only `test` contains new ads. In the next day's log, all
    splits contain new ads, and the newest ads are only in `test`.
    """
    old = ADS - NEW_ADS
    ads = rng.permutation(old)[draw(rng, zipf_shares(old), plan.all_requests * CANDIDATES)]
    replace_ads(rng, ads, first_row(plan.requests[:2]), first_row(plan.requests), NEW_AD_SHARE, (old, ADS))
    if plan.next_day:
        start, end = first_row(plan.requests), len(ads)
        newest = ADS + NEXT_DAY_ADS - NEXT_DAY_ADS // 5  # a fifth of the day's new ads start in its test
        replace_ads(rng, ads, start, end, NEXT_DAY_SHARE, (old, newest))
        test = first_row((*plan.requests, *plan.next_day[:2]))
        replace_ads(rng, ads, test, end, NEW_AD_SHARE, (newest, ADS + NEXT_DAY_ADS))
    return ads


def first_row(requests: Sequence[int]) -> int:
    """Return the first row after splits with these numbers of requests."""
    return sum(requests) * CANDIDATES


def replace_ads(
    rng: np.random.Generator, ads: Codes, start: int, end: int, share: float, codes: tuple[int, int]
) -> None:
    """Replace a share of the ads in the rows `start` to `end`, in place, with ads sampled from a range of codes."""
    rows = np.arange(start, end)
    replaced = rng.choice(rows, round(share * len(rows)), replace=False)
    ads[replaced] = rng.integers(*codes, len(replaced))


def describe_ads(rng: np.random.Generator, ads: Codes) -> tuple[dict[str, Codes], Floats]:
    """Sample the codes of the candidate's categorical fields and bid (euros per 1,000 impressions), (impressions) each.

    Args:
        rng: The random generator that samples the ads' attributes.
        ads: The ad codes, (impressions).
    """
    # Every campaign has an old ad, and every advertiser has a campaign. So the training set contains the campaign and
    # the advertiser of every new ad.
    new = max(ADS, int(ads.max()) + 1) - (ADS - NEW_ADS)
    campaign = np.append(rng.permutation(ADS - NEW_ADS) % CAMPAIGNS, rng.integers(0, CAMPAIGNS, new))[ads]
    advertiser = (rng.permutation(CAMPAIGNS) % ADVERTISERS)[campaign]
    codes = {
        "ad": ads,
        "campaign": campaign,
        "advertiser": advertiser,
        "category": (rng.permutation(ADVERTISERS) % len(CATEGORIES))[advertiser],
        "format": draw(rng, np.array([4, 3, 1.5, 1, 2]), ADS - NEW_ADS + new)[ads],
        "language": draw(rng, np.array([6, 4, 3, 2, 2, 1.0]), CAMPAIGNS)[campaign],
        "sensitive": draw(rng, np.array([1 - RARE_SHARE, RARE_SHARE]), len(ads)),
    }
    usual_bid = rng.lognormal(0.7, 0.35, CAMPAIGNS)[campaign]
    return codes, np.maximum(0.01, np.round(usual_bid * rng.lognormal(0.0, 0.35, len(ads)), 2))


@dataclass(frozen=True)
class Impressions:
    """The impressions of a log as codes and numbers, (impressions) each, with the effects that their clicks follow.

    Attributes:
        codes: The codes of the categorical fields. UNKNOWN_AGE is the code of a missing age band.
        numbers: The values of the numeric fields. NaN means missing.
        clicks: The click model.
    """

    codes: dict[str, Codes]
    numbers: dict[str, Floats]
    clicks: ClickModel

    @property
    def probability(self) -> Floats:
        """The true click probabilities, (impressions)."""
        return sigmoid(self.clicks.logit(self.codes, self.numbers))


def draw_impressions(rng: np.random.Generator, plan: Plan) -> Impressions:
    """Sample plan.all_requests * CANDIDATES impressions in time order."""
    requests = plan.all_requests
    context, session_depth = draw_requests(rng, plan)
    candidate, bid = describe_ads(rng, draw_ads(rng, plan))
    request = np.repeat(np.arange(requests), CANDIDATES)
    codes = {field: column[request] for field, column in context.items()} | candidate
    numbers = {"session_depth": session_depth[request], "bid": bid}
    # If a value is missing, it is missing for all candidates of a request. The click model treats a missing age band as
    # a separate band.
    missing = {field: (rng.random(requests) < MISSING_SHARE)[request] for field in ("age_band", "session_depth")}
    numbers["session_depth"][missing["session_depth"]] = np.nan
    codes["age_band"] = np.where(missing["age_band"], UNKNOWN_AGE, codes["age_band"])
    return Impressions(codes, numbers, ClickModel(rng, codes, numbers, plan.click_rate))


def generate(seed: int, plan: Plan) -> pl.DataFrame:
    """Return all plan.all_requests * CANDIDATES rows in time order. The same seed and plan give the same log."""
    rng = np.random.default_rng(seed)
    impressions = draw_impressions(rng, plan)
    true_ctr = impressions.probability
    # A code without a name, UNKNOWN_AGE, becomes null.
    names = {field: pl.Series([*values, None]) for field, values in NAMES.items()}
    columns = {field: names[field].gather(codes) for field, codes in impressions.codes.items()}
    columns |= {field: pl.Series(values, nan_to_null=True) for field, values in impressions.numbers.items()}
    return pl.DataFrame({field: columns[field] for field in (*CONTEXT, *CANDIDATE)}).with_columns(
        pl.col("session_depth").cast(pl.Int64),
        pl.Series(REQUEST, np.arange(len(true_ctr)) // CANDIDATES),
        pl.Series(TRUE_CTR, true_ctr),
        pl.Series(LABEL, (rng.random(len(true_ctr)) < true_ctr).astype(np.int8)),
    )


def write(root: Path, seed: int, plan: Plan, progress: Progress) -> list[Path]:
    """Write root/generated, and root/generated-next-day if planned, each atomically, and return their paths.

    Raises:
        ValueError: If a folder exists and is not a generated log.
    """
    logs = {root / FOLDER: plan.requests} | ({root / NEXT_DAY: plan.next_day} if plan.next_day else {})
    for target in logs:
        check_replaceable(target, MARKER)
    task = progress.add_task("sampling requests and clicks", total=1 + len(logs) * len(SPLITS))
    frame, first = generate(seed, plan), 0
    progress.advance(task)
    for target, requests in logs.items():
        with new_folder(target, MARKER) as folder:
            for split, number in zip(SPLITS, requests, strict=True):
                progress.update(task, description=f"writing {split}", advance=1)
                end = first + number * CANDIDATES
                frame[first:end].write_parquet(folder / f"{split}.parquet")
                first = end
    return list(logs)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.data.synthetic.generate", description=__doc__)
    add_data_argument(parser)
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same log")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--requests", type=int, default=120_000, help=f"each request shows {CANDIDATES} candidates")
    names = ("TRAIN", "VALID", "TEST")
    size.add_argument(
        "--rows",
        type=int,
        nargs=3,
        metavar=names,
        help=f"the rows of each split, instead of --requests, rounded up to a multiple of {CANDIDATES}",
    )
    next_day = "also write a log of the next day with these numbers of rows"
    parser.add_argument("--next-day", type=int, nargs=3, metavar=names, default=(), help=next_day)
    parser.add_argument("--click-rate", type=float, default=CLICK_RATE, help="the mean click probability")
    options = parser.parse_args(arguments)
    requests = split_at(options.requests) if options.rows is None else requests_of(options.rows)
    try:
        plan = Plan(requests, requests_of(options.next_day), options.click_rate)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            targets = write(options.data, options.seed, plan, progress)
    except (OSError, ValueError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    for target, written in zip(targets, (plan.requests, plan.next_day), strict=False):
        print(f"wrote {sum(written) * CANDIDATES:,} impressions to {target}")
    return 0


def requests_of(rows: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of requests with at least these numbers of rows."""
    return tuple(-(-number // CANDIDATES) for number in rows)


if __name__ == "__main__":
    sys.exit(main())
