"""A model that is trained every day on joined logs, from the weights of the day before, beats one that is not."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from model.data.prepare.prepare import prepare
from model.data.readers.split import DURATION_UNITS
from model.data.synthetic.traffic import DAY_S, Behavior, Traffic
from model.data.synthetic.traffic_files import write_days
from model.data_config import Data, SplitByTime
from model.experiment_config import Experiment, Training
from model.experiments.run_folder import data_of, open_run
from model.experiments.train import train
from model.experiments.trial import load_split
from model.experiments.warm import open_warm_start
from model.layers import fields_of
from model.loop.join import join
from model.loop.output import Settings
from model.stec.stec import STECConfig
from model.training.fit import predict
from model.training.true_ctr import true_normalized_entropy
from model.zoo import build

START_S = 1_796_083_200.0  # 2026-12-01
DAYS, FIRST_DAYS, REQUESTS = 7, 3, 2500
BEHAVIOR = Behavior(users=1000, user_std=0.2, drift_std=0.3, base_rate_std=0.05, new_campaigns=0.05, campaign_std=0.5)
NEW = Training(batch_size=256, embedding_l2=0.3, net_l2=0.1, epochs=6)
DAILY = msgspec.structs.replace(NEW, epochs=1, learning_rate=5e-4)
Numbers = NDArray[np.float64]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The joined logs of seven days, and the true probability of each impression in truth.parquet."""
    root = tmp_path_factory.mktemp("days")
    truth = write_days(Traffic(1, START_S, BEHAVIOR), DAYS, REQUESTS, root / "log", root / "events")
    settings = Settings(window_s=1800, lateness_s=DAY_S)
    join([root / "log", root / "events"], root / "joined", settings, round((START_S + 20 * DAY_S) * 1000))
    truth.impressions().select("score_id", "candidate", "probability").write_parquet(root / "truth.parquet")
    return root


def hours_until(root: Path, day: int) -> list[Path]:
    """Return the joined hours of the first days, up to and including `day`, counted from 0."""
    return [path for path in sorted((root / "joined" / "hours").iterdir()) if int(path.name[8:10]) <= day + 1]


def experiment(root: Path, day: int, recipe: Training, **durations: str) -> Experiment:
    """Return the experiment of the run that is tested on `day`, which it has not used."""
    data = Data(
        reader="table",
        folder="joined",
        prepared="prepared",
        files=tuple(f"hours/{path.name}" for path in hours_until(root, day)),
        split=SplitByTime(valid="6h", test="1d", **durations),
        time="time",
        unit="unit",
        request="score_id",
        weight="weight",
        label="click",
        context=("age_band", "country", "device", "slot", "hour", "session_depth"),
        candidate=("ad", "campaign", "advertiser", "category", "format", "language", "bid"),
        numeric=("session_depth", "bid"),
    )
    return Experiment(name="shop", data=data, model=STECConfig(embedding=8, blocks=1, ffn=16), training=recipe)


def true_probabilities(root: Path, day: int) -> Numbers:
    """Return the true probability of each row of the last 24 hours until the end of `day`, in the order of the log."""
    rows = pl.concat([pl.scan_parquet(path) for path in hours_until(root, day)], how="diagonal").collect()
    seconds = rows["time"].dt.timestamp("us") // 1_000_000
    newest = rows.filter(seconds > seconds.max() - DURATION_UNITS["d"])  # type: ignore[operator]
    found = newest.join(
        pl.read_parquet(root / "truth.parquet"), ["score_id", "candidate"], "left", maintain_order="left"
    )
    return found["probability"].to_numpy()


def test_the_daily_model_beats_the_frozen_one_on_the_next_day(root: Path) -> None:
    retrained, frozen = list[float](), list[float]()
    for day in range(FIRST_DAYS, DAYS):
        is_first = day == FIRST_DAYS
        daily = experiment(root, day, NEW) if is_first else experiment(root, day, DAILY, train="3d")
        prepared = prepare(root, daily.data)
        train(daily, root, root / "run", warm=None if is_first else root / "run")
        if is_first:
            shutil.copytree(root / "run", root / "frozen")
        else:
            facts = data_of(root / "run")
            assert facts is not None
            assert facts.warm is not None
            assert facts.warm.new_tokens > 0
            assert facts.periods["train"][1] < facts.periods["valid"][0] < facts.periods["test"][0]
        test, true = load_split(prepared, "test"), true_probabilities(root, day)
        copy = build(fields_of(prepared.schema, prepared.vocabulary_sizes), daily.model)
        open_warm_start(root / "frozen", daily, prepared).copy_to(copy)  # has the same tokens, with other ids
        retrained.append(true_normalized_entropy(predict(open_run(root / "run")[0], test), true))
        frozen.append(true_normalized_entropy(predict(copy, test), true))
    assert retrained[0] == pytest.approx(frozen[0])
    assert np.mean(retrained[1:]) < np.mean(frozen[1:]) - 0.01
    assert retrained[-1] < frozen[-1] - 0.01
    assert max(retrained) < 1
