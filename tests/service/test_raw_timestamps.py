"""From a log with raw timestamps to a served model: a request with a raw row gets the prepared row's probability."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from contract.bundle import GOLDEN, open_bundle
from contract.encode import Encoder
from contract.golden import read_golden
from contract.request_log import LoggedCandidate, LogLine
from export.cli.export import main as export
from export.explain.case import Case
from export.explain.explanation import open_explainer
from loadtest.openloop.bodies import prepare as draw_requests
from model.cli.prepare import main as prepare
from model.cli.train import main as train
from model.data.prepare.prepared import read_prepared
from model.data.readers.log import SPLITS
from model.experiments.run_folder import open_run
from model.training.batches import Split
from model.training.fit import predict
from service.request_log.replay import score_line
from service.runtime.engine import open_engine
from tests.support.app import StartApp, problem
from tests.support.sharing import made_once
from tests.support.timestamps import TOML, notations

ROWS = 600
START = 1_769_893_200  # 2026-01-31T21:00:00Z
EXPERIMENT = f"""{TOML}
[[data.fields]]
name = "user"
side = "context"
[[data.fields]]
name = "price_bucket"
side = "candidate"
from = "price"
transform = "log_square"
[model]
embedding = 4
blocks = 1
ffn = 8
[training]
epochs = 2
batch_size = 128
"""


def write_log(folder: Path) -> None:
    """Write a log whose timestamps are in all notations."""
    random = np.random.default_rng(0)
    for split in SPLITS:
        seconds = START + random.integers(0, 14 * 86_400, ROWS)
        texts = [
            str(random.choice(notations(int(second), int(random.integers(1000)), int(random.integers(-600, 600)))))
            for second in seconds
        ]
        frame = pl.DataFrame(
            {
                "click": (random.random(ROWS) < 0.2 + 0.5 * ((seconds + 3 * 3600) // 3600 % 24 >= 20)).astype(int),
                "user": [f"u{number}" for number in random.integers(0, 20, ROWS)],
                "shown_at": texts,
                "ad": [f"a{number}" for number in random.integers(0, 10, ROWS)],
                "price": random.lognormal(3, 2, ROWS).round(2),
            }
        )
        frame.write_csv(folder / f"{split}.csv")


@pytest.fixture(scope="module")
def root(shared_folder: Path) -> Path:
    """A folder with the log, its prepared log, a run and a bundle."""

    def make(folder: Path) -> None:
        (folder / "timed").mkdir(parents=True)
        write_log(folder / "timed")
        (folder / "timed.toml").write_text(EXPERIMENT)
        toml, data = str(folder / "timed.toml"), ["--data", str(folder)]
        assert prepare([toml, *data]) == 0
        assert train([toml, *data, "--out", str(folder / "run")]) == 0
        assert export([str(folder / "run"), str(folder / "bundle"), *data]) == 0

    return made_once(shared_folder / "raw-timestamps", make)


async def test_a_request_with_a_raw_row_gets_the_probability_of_the_prepared_row(root: Path, start: StartApp) -> None:
    test = pl.read_csv(root / "timed" / "test.csv", schema_overrides={"shown_at": pl.String})
    expected = predict(open_run(root / "run")[0], Split(*read_prepared(root / "prepared").split("test")))
    async with start(bundle=root / "bundle", strict=True) as client:
        for row, shown in enumerate(test.head(60).iter_rows(named=True)):
            body = {
                "context": {"user": shown["user"], "shown_at": shown["shown_at"]},
                "candidates": [{"id": 1, "features": {"ad": shown["ad"], "price": shown["price"]}}],
            }
            answer = await client.post("/v1/score", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["scores"][0]["ctr"] == pytest.approx(expected[row], rel=1e-4, abs=1e-6)


async def test_the_server_names_what_it_reads_and_refuses_what_is_not_a_time(root: Path, start: StartApp) -> None:
    async with start(bundle=root / "bundle") as client:
        fields = (await client.get("/v1/model")).json()["fields"]
        assert {
            "name": "hour",
            "side": "context",
            "kind": "categorical",
            "from": "shown_at",
            "transform": "hour",
        } in fields
        body: dict[str, Any] = {"context": {"shown_at": 20260131}, "candidates": [{"id": 1, "features": {}}]}
        answer = await client.post("/v1/score", json=body)
        problem(answer, 422, "$.context.shown_at", "must be an ISO 8601 time", "got 20260131")


def test_golden_and_load_test_requests_have_raw_timestamps(root: Path) -> None:
    bundle = open_bundle(root / "bundle")
    assert bundle.manifest.format_version == 3
    sent = [request.context.get("shown_at") for request in read_golden(bundle.folder / GOLDEN)]
    assert {type(value) for value in sent} == {int, str, type(None)}
    assert all(datetime.fromisoformat(value).tzinfo == UTC for value in sent if isinstance(value, str))
    assert len(draw_requests([bundle], {5: 20}, timeout_ms=None)) == 20


def test_a_hashed_timestamp_is_replayed_as_missing(root: Path) -> None:
    bundle = open_bundle(root / "bundle")
    encoder, engine = Encoder(bundle.schema), open_engine(bundle, threads=1)

    def replayed(context: dict[str, Any], hashed: list[str]) -> float:
        line = LogLine(
            time="",
            score_id="",
            request_id="",
            model="timed",
            version=bundle.manifest.version,
            context=context,
            candidates=[LoggedCandidate(0, 1, {"ad": "a1", "price": 3}, 0.5, 0.0)],
            hashed=hashed,
        )
        return float(score_line(line, encoder, bundle, engine)[0])

    missing = replayed({"user": "u1"}, [])
    assert replayed({"user": "u1", "shown_at": "9f86d081884c7d65"}, ["shown_at"]) == missing
    assert replayed({"user": "u1", "shown_at": "2026-02-05T20:00:00Z"}, []) != missing
    assert np.isnan(replayed({"user": "u1", "shown_at": "9f86d081884c7d65"}, []))


def test_an_explanation_shows_the_derived_values(root: Path) -> None:
    explainer = open_explainer(root / "bundle")
    case = Case(1, {"user": "u1", "shown_at": START}, {"ad": "a1", "price": 3, "moon": "full"})
    explanation = explainer.explain(case)
    values = dict(zip(explanation.fields, explanation.values, strict=True))
    assert (values["hour"], values["weekday"], values["price"]) == ("0", "7", "3")
    assert explainer.ignored(case) == ["candidate moon"]
