"""A field that clients send as a number and the model reads as a category, from training to the response."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from contract.bundle import GOLDEN, open_bundle
from contract.golden import read_golden
from export.bundle import export
from model.baselines.fm import FMConfig
from model.data.prepare.prepare import prepare
from model.data.readers.log import SPLITS
from model.data_config import Data, FieldSpec
from model.experiment_config import Experiment, Training
from model.experiments.train import train
from service.api.example import example_request
from service.models import verify
from tests.support.app import StartApp, problem
from tests.support.sharing import made_once

DATA = Data(
    reader="table",
    folder=".",
    prepared="prepared",
    train="train.csv",
    valid="valid.csv",
    test="test.csv",
    fields=(
        FieldSpec(name="user", side="context"),
        FieldSpec(name="visits", side="context", transform="log_square", missing=("-1",)),
        FieldSpec(name="ad", side="candidate"),
    ),
)


@pytest.fixture(scope="module")
def bucket_bundle(shared_folder: Path) -> Path:
    return made_once(shared_folder / "buckets", write_bundle) / "bundle"


def write_bundle(root: Path) -> None:
    """Write a log, train a small model on it and export it."""
    root.mkdir()
    random = np.random.default_rng(1)
    visits = random.integers(-1, 400, 3000)
    columns = {
        "label": (random.random(3000) < np.where(visits > 100, 0.8, 0.2)).astype(int),
        "user": random.integers(0, 9, 3000),
        "visits": visits,
        "ad": random.integers(0, 9, 3000),
    }
    for split in SPLITS:
        pl.DataFrame(columns).write_csv(root / f"{split}.csv")
    prepare(root, DATA)
    recipe = Training(epochs=2, batch_size=256, learning_rate=0.01)
    train(Experiment(name="buckets", data=DATA, model=FMConfig(embedding=4), training=recipe), root, root / "run")
    export(root / "run", root / "bundle")


@pytest.mark.parametrize("visits", [7, -1, None])
async def test_hashed_numbers_count_as_missing_when_a_log_is_replayed(
    start: StartApp, bucket_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], visits: int | None
) -> None:
    (tmp_path / "salt").write_text("a salt of sixteen or more bytes")
    hashed = {"request_log_hash": "visits", "request_log_salt_file": tmp_path / "salt", "request_log_sample": 1.0}
    async with start(bundle=bucket_bundle, request_log=tmp_path / "log", **hashed) as client:
        assert (await client.post("/v1/score", json=a_request(visits))).status_code == 200
    verify.main([str(bucket_bundle), "--log", str(tmp_path / "log")])
    assert "1 candidates compared" in capsys.readouterr().out


def a_request(visits: Any) -> dict[str, Any]:
    return {"context": {"user": "3", "visits": visits}, "candidates": [{"id": 1, "features": {"ad": "5"}}]}


async def ctr(client: httpx.AsyncClient, visits: Any) -> float:
    answer = await client.post("/v1/score", json=a_request(visits))
    assert answer.status_code == 200, answer.text
    return float(answer.json()["scores"][0]["ctr"])


async def test_a_raw_number_is_scored_by_its_bucket(start: StartApp, bucket_bundle: Path) -> None:
    async with start(bundle=bucket_bundle) as client:
        for _ in range(2):  # The second time, the ids come from the token cache.
            assert await ctr(client, 30) == await ctr(client, 31.5)  # log(30)^2 and log(31.5)^2 are both 11.x.
            assert await ctr(client, 30) != await ctr(client, 350)
            assert await ctr(client, -1) == await ctr(client, None) != await ctr(client, 0)


async def test_the_name_of_a_bucket_is_not_a_valid_value(start: StartApp, bucket_bundle: Path) -> None:
    async with start(bundle=bucket_bundle) as client:
        await ctr(client, 30)
        answer = await client.post("/v1/score", json=a_request("11"))
        problem(answer, 422, "$.context.visits")


async def test_the_example_request_has_numbers_in_known_buckets(start: StartApp, bucket_bundle: Path) -> None:
    example = example_request(open_bundle(bucket_bundle), read_golden(bucket_bundle / GOLDEN), 3)
    async with start(bundle=bucket_bundle, strict=True) as client:
        assert (await client.post("/v1/score", json=example)).status_code == 200
