"""Joined logs whose clicks are drawn from the probabilities of a bundle, for tests of what reads them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from contract.encode import Encoder
from export.predict.rows import sent_values
from export.predict.scorer import open_scorer
from model.data.readers.scan import JOINED_LOG
from model.loop.output import HOURS, LOCK, Settings
from tests.support.small_bundle import TOKENS

START = datetime(2026, 11, 29, 18, tzinfo=UTC)


def draw_joined_log(
    folder: Path, bundle: Path, rows: int = 4000, units: int = 400, scale: float = 1.0, hours: int = 30, seed: int = 7
) -> pl.DataFrame:
    """Write a joined log of requests with two candidates each, and return its rows.

    Args:
        folder: The folder to write.
        bundle: A bundle with the fields of write_small_bundle(). Its probabilities are `scale` times the true ones.
        rows: The number of rows.
        units: The number of units.
        scale: See bundle.
        hours: The number of hours, from START.
        seed: The random seed.
    """
    random = np.random.default_rng(seed)
    requests = (rows + 1) // 2
    context: dict[str, Any] = {
        "unit": [f"unit-{number}" for number in random.integers(units, size=requests)],
        "score_id": [f"request-{number}" for number in range(requests)],
        "user": random.choice([*TOKENS["user"], "new-user"], requests),
        "weekday": random.choice(TOKENS["weekday"], requests),
        "age": [f"{number:.0f}" for number in random.normal(30, 10, requests)],
    }
    request = np.repeat(np.arange(requests), 2)[:rows]
    log = pl.DataFrame(context)[request].with_columns(
        time=pl.Series([START + timedelta(hours=hours * n / requests) for n in range(requests)])[request].cast(
            pl.Datetime("ms", "UTC")
        ),
        candidate=pl.Series(np.arange(rows) % 2),
        item=pl.Series(random.choice([*TOKENS["item"], "new-item"], rows)),
        cost=pl.Series(random.choice(TOKENS["cost"], rows)),
        price=pl.Series([f"{number:.2f}" for number in random.normal(2, 0.5, rows)]),
        weight=pl.lit(1.0),
    )
    scorer = open_scorer(bundle)
    true = scorer.score(Encoder(scorer.schema), sent_values(log, scorer.schema)) / scale
    log = log.with_columns(click=pl.Series(random.random(rows) < true).cast(pl.Int8))
    write_joined_log(folder, log)
    return log


def write_joined_log(folder: Path, log: pl.DataFrame, **rename: str) -> None:
    """Write rows as the hours of a joined log."""
    (folder / HOURS).mkdir(parents=True, exist_ok=True)
    (folder / LOCK).touch()
    metadata = {JOINED_LOG: msgspec.json.encode(Settings(window_s=1800, lateness_s=86400, rename=rename)).decode()}
    time = rename.get("time", "time")
    for (hour,), part in log.group_by(pl.col(time).dt.strftime("%Y-%m-%dT%H").alias("hour"), maintain_order=True):
        part.write_parquet(folder / HOURS / f"{hour}.parquet", metadata=metadata)
