"""Write a synthetic ad log that is free to use: DIR/generated/{train,valid,test}.parquet.

Every request shows five candidates. `click` is sampled with probability `true_ctr`, so a model's probabilities can be
compared with the true ones. The log resembles real logs: a few users and ads are frequent and many are rare, values are
missing, some fields hardly vary, and `test` contains new ads.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import Progress

from model.atomic_folder import check_replaceable, new_folder
from model.data.data_folder import add_data_argument
from model.data.readers.generated import CANDIDATE, CONTEXT, LABEL, REQUEST, TRUE_CTR
from model.data.readers.log import SPLITS
from model.data.synthetic.click_model import Codes, Floats, click_probability

FOLDER = "generated"
MARKER = "test.parquet"  # the last file to be written
CANDIDATES = 5
USERS, ADS, NEW_ADS, CAMPAIGNS, ADVERTISERS = 5000, 2000, 100, 100, 25
ZIPF = 1.1
DAYS = 28
NEW_AD_SHARE = 0.05  # the share of impressions in test that show a new ad
MISSING_SHARE = 0.05
RARE_SHARE = 0.01
SHARES = (0.8, 0.1, 0.1)  # the shares of requests in train, valid and test, in time order
MIN_REQUESTS = 100

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
    "ad": [f"ad-{n}" for n in range(1, ADS + 1)],
    "campaign": [f"campaign-{n}" for n in range(1, CAMPAIGNS + 1)],
    "advertiser": [f"advertiser-{n}" for n in range(1, ADVERTISERS + 1)],
    "category": CATEGORIES,
    "format": ["banner", "native", "video", "carousel", "text"],
    "language": ["english", "german", "french", "spanish", "italian", "polish"],
    "sensitive": ["no", "yes"],
}
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


def draw_requests(rng: np.random.Generator, requests: int) -> tuple[dict[str, Codes], Floats]:
    """Sample the codes of the context's categorical fields and session_depth, (requests) each, in time order."""
    time = np.sort(rng.integers(0, DAYS, requests) * 24 + draw(rng, HOURS, requests))
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


def draw_ads(rng: np.random.Generator, requests: int) -> Codes:
    """Sample ad codes, int64 (requests * CANDIDATES). Ads with the highest codes are new: only `test` contains them."""
    old = ADS - NEW_ADS
    ads = rng.permutation(old)[draw(rng, zipf_shares(old), requests * CANDIDATES)]
    test = np.arange(split_edges(requests)[2] * CANDIDATES, len(ads))
    replaced = rng.choice(test, round(NEW_AD_SHARE * len(test)), replace=False)
    ads[replaced] = rng.integers(old, ADS, len(replaced))
    return ads


def describe_ads(rng: np.random.Generator, ads: Codes) -> tuple[dict[str, Codes], Floats]:
    """Sample the codes of the candidate's categorical fields and bid (euros per 1,000 impressions), (impressions) each.

    Args:
        rng: The random generator that samples the ads' attributes.
        ads: The ad codes, (impressions).
    """
    # Every campaign has an old ad, and every advertiser has a campaign. So the training set contains the campaign and
    # the advertiser of every new ad.
    campaign = np.append(rng.permutation(ADS - NEW_ADS) % CAMPAIGNS, rng.integers(0, CAMPAIGNS, NEW_ADS))[ads]
    advertiser = (rng.permutation(CAMPAIGNS) % ADVERTISERS)[campaign]
    codes = {
        "ad": ads,
        "campaign": campaign,
        "advertiser": advertiser,
        "category": (rng.permutation(ADVERTISERS) % len(CATEGORIES))[advertiser],
        "format": draw(rng, np.array([4, 3, 1.5, 1, 2]), ADS)[ads],
        "language": draw(rng, np.array([6, 4, 3, 2, 2, 1.0]), CAMPAIGNS)[campaign],
        "sensitive": draw(rng, np.array([1 - RARE_SHARE, RARE_SHARE]), len(ads)),
    }
    usual_bid = rng.lognormal(0.7, 0.35, CAMPAIGNS)[campaign]
    return codes, np.maximum(0.01, np.round(usual_bid * rng.lognormal(0.0, 0.35, len(ads)), 2))


def generate(seed: int, requests: int) -> pl.DataFrame:
    """Return the whole log, requests * CANDIDATES rows in time order. The same seed gives the same log."""
    rng = np.random.default_rng(seed)
    context, session_depth = draw_requests(rng, requests)
    candidate, bid = describe_ads(rng, draw_ads(rng, requests))
    request = np.repeat(np.arange(requests), CANDIDATES)
    codes = {field: column[request] for field, column in context.items()} | candidate
    numbers = {"session_depth": session_depth[request], "bid": bid}
    # If a value is missing, it is missing for all candidates of a request. The click model treats a missing age band as
    # a separate band.
    missing = {field: (rng.random(requests) < MISSING_SHARE)[request] for field in ("age_band", "session_depth")}
    numbers["session_depth"][missing["session_depth"]] = np.nan
    known = {"age_band": np.where(missing["age_band"], len(NAMES["age_band"]), codes["age_band"])}
    true_ctr = click_probability(rng, codes | known, numbers)
    columns = {field: pl.Series(NAMES[field]).gather(column) for field, column in codes.items()}
    columns |= {field: pl.Series(column, nan_to_null=True) for field, column in numbers.items()}
    frame = pl.DataFrame({field: columns[field] for field in (*CONTEXT, *CANDIDATE)}).with_columns(
        pl.when(~pl.Series(missing["age_band"])).then("age_band").alias("age_band"),
        pl.Series(REQUEST, request),
        pl.Series(TRUE_CTR, true_ctr),
        pl.Series(LABEL, (rng.random(len(request)) < true_ctr).astype(np.int8)),
    )
    return frame.with_columns(pl.col("session_depth").cast(pl.Int64))


def split_edges(requests: int) -> tuple[int, int, int, int]:
    """Return the first request of each split, and the number of requests."""
    train, valid, _ = (round(share * requests) for share in SHARES)
    return 0, train, train + valid, requests


def write(root: Path, seed: int, requests: int, progress: Progress) -> Path:
    """Write root/generated atomically and return its path.

    Raises:
        ValueError: If there are too few requests, or root/generated exists and is not a generated log.
    """
    if requests < MIN_REQUESTS:
        raise ValueError(f"requests = {requests}: at least {MIN_REQUESTS} are needed to fill every split")
    target = root / FOLDER
    check_replaceable(target, MARKER)
    task = progress.add_task("sampling requests and clicks", total=1 + len(SPLITS))
    frame = generate(seed, requests)
    progress.advance(task)
    edges = [edge * CANDIDATES for edge in split_edges(requests)]
    with new_folder(target, MARKER) as folder:
        for split, first, end in zip(SPLITS, edges[:-1], edges[1:], strict=True):
            progress.update(task, description=f"writing {split}", advance=1)
            frame[first:end].write_parquet(folder / f"{split}.parquet")
    return target


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.data.synthetic.generate", description=__doc__)
    add_data_argument(parser)
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same log")
    parser.add_argument("--requests", type=int, default=120_000, help=f"each shows {CANDIDATES} candidates")
    options = parser.parse_args(arguments)
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            target = write(options.data, options.seed, options.requests, progress)
    except (OSError, ValueError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.requests * CANDIDATES:,} impressions to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
