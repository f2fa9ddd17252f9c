"""The inputs of ctr-gate: logs that ctr-join wrote, runs, and models that may have seen the rows."""

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from contract.bundle import open_bundle
from contract.request_log import LoggedCandidate
from export.cli.gate import main
from export.gate.gate import gate
from export.gate.model import training_of
from export.gate.rows import Period
from export.gate.verdict import Limits
from export.predict.scorer import Scorer, open_scorer
from model.data.readers.generated import LABEL
from model.data_config import Data, SplitAtRandom, SplitByTime
from model.loop.join import join
from model.loop.output import Settings
from tests.support.joined_logs import START, draw_joined_log, write_joined_log
from tests.support.loop_logs import START_S, event, request, score_id, write_logs
from tests.support.runs import DATA
from tests.support.small_bundle import TOKENS, write_small_bundle

DAY_MS = 24 * 3600 * 1000


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_a_log_that_ctr_join_wrote_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A feature that clients began to send later has no column in older hours. Brackets are not a pattern."""
    random = np.random.default_rng(1)
    requests, events = [], []
    for number in range(400):
        time_s = number * 20.0
        context = {"user": str(random.choice(TOKENS["user"])), "weekday": "sunday", "age": 30}
        context |= {"late": "x"} if number > 300 else {}
        features = {"item": str(random.choice(TOKENS["item"])), "cost": "free", "price": 1.5}
        candidates = [LoggedCandidate(0, "c", features, ctr=0.1, logit=-2.2, inclusion=0.5)]
        unit = f"unit-{number % 150}"
        requests.append(request(number, time_s, candidates, context=context, unit=unit))
        events.append(event("impression", score_id(number, time_s), time_s + 1))
        if random.random() < 0.7:
            events.append(event("click", score_id(number, time_s), time_s + 2))
    folders = write_logs(tmp_path, requests, events)
    settings = Settings(window_s=60, lateness_s=60, rename={"time": "moment"})
    joined = join(folders, tmp_path / "joined[1]", settings, until_ms=int((START_S + 100_000) * 1000))
    assert joined.balance.outcomes["impression", "joined"] == 400
    new, old = (write_small_bundle(tmp_path / f"b{seed}", seed=seed) for seed in (0, 1))
    words = (new, old, tmp_path / "joined[1]", "--out", tmp_path / "gate", "--by", "late")
    assert run(*words) in (0, 1, 3)
    assert 'column "late" is not in 1 of 3 joined files' in capsys.readouterr().err
    report = json.loads((tmp_path / "gate" / "gate.json").read_text())
    assert report["figures"]["rows"] == 400
    assert report["figures"]["clusters"] == 150
    assert {segment["name"]: segment["rows"] for segment in report["figures"]["segments"]["late"]} == {
        "(missing)": 301,
        "x": 99,
    }
    for hour in (tmp_path / "joined[1]" / "hours").iterdir():
        assert (pl.read_parquet(hour, glob=False)["weight"] == 2).all()


def test_a_crash_does_not_exit_with_the_code_of_a_model_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    new, old = (write_small_bundle(tmp_path / f"b{seed}", seed=seed) for seed in (0, 1))
    monkeypatch.setattr("export.gate.gate.gate", crash)
    assert run(new, old, tmp_path / "joined", "--out", tmp_path / "gate") == 2
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err
    assert not (tmp_path / "gate").exists()


def generated_log(run_folder: Path, folder: Path) -> Path:
    """Write the generated test rows as a joined log of 10 hours."""
    rows = pl.read_parquet(run_folder.parent / DATA.folder / "test.parquet").rename({LABEL: "click"})
    time = pl.Series([START + timedelta(hours=10 * n / len(rows)) for n in range(len(rows))]).cast(
        pl.Datetime("ms", "UTC")
    )
    unit, request = pl.col("user").cast(pl.String), pl.col("request").cast(pl.String)
    write_joined_log(
        folder, rows.with_columns(time=time, unit=unit, score_id=request, weight=pl.lit(1.0)).drop("request")
    )
    return folder


def test_a_run_and_its_bundle_are_equal(run_folder: Path, bundle_folder: Path, tmp_path: Path) -> None:
    joined = generated_log(run_folder, tmp_path / "joined")
    assert run(run_folder, bundle_folder, joined, "--out", tmp_path / "gate", "--by", "category") in (0, 1, 3)
    report = json.loads((tmp_path / "gate" / "gate.json").read_text())
    assert report["new"] == "run:small"
    assert report["old"] == open_bundle(bundle_folder).manifest.version
    change = report["figures"]["normalized_entropy"]
    assert max(abs(change["low"]), abs(change["high"])) < 1e-5
    assert report["figures"]["new"]["auc"] == pytest.approx(report["figures"]["old"]["auc"], abs=1e-4)
    page = (tmp_path / "gate" / "gate.md").read_text()
    assert "# Gate: small against small " in page
    assert "its log is in generated, so this cannot be checked" in page
    assert "| Δ AUC, relative | " in page


def test_a_bundle_that_was_exported_before_the_first_row_cannot_have_seen_it(tmp_path: Path) -> None:
    new, old = (write_small_bundle(tmp_path / f"b{seed}", seed=seed) for seed in (0, 1))
    log = draw_joined_log(tmp_path / "joined", new, rows=1000, hours=2)
    write_joined_log(tmp_path / "later", log.with_columns(pl.col("time") + pl.duration(days=36_500)))
    assert run(new, old, tmp_path / "later", "--out", tmp_path / "gate") in (0, 1, 3)
    models = json.loads((tmp_path / "gate" / "gate.json").read_text())["models"]
    created = open_bundle(new).manifest.created
    assert models["new"]["training"] == f"exported at {created}, before the first row"
    write_joined_log(tmp_path / "earlier", log.with_columns(pl.col("time") - pl.duration(days=3650)))
    assert run(new, old, tmp_path / "earlier", "--out", tmp_path / "gate") in (0, 1, 3)
    models = json.loads((tmp_path / "gate" / "gate.json").read_text())["models"]
    assert models["new"]["training"].endswith("after the first row, so this cannot be checked")


@pytest.mark.parametrize(
    ("folder", "split", "is_suspect"),
    [
        ("joined", SplitByTime(valid="1d", test="1d"), False),
        ("joined", SplitByTime(valid="1d", test="12h"), True),
        ("joined", SplitAtRandom(valid=0.1, test=0.1), True),
        (".", SplitAtRandom(valid=0.1, test=0.1), True),
        ("another", SplitAtRandom(valid=0.1, test=0.1), False),
    ],
)
def test_a_run_whose_split_does_not_keep_the_period_is_suspect(
    folder: str, split: SplitByTime | SplitAtRandom, is_suspect: bool, tmp_path: Path
) -> None:
    period = Period(tmp_path / "joined", 0, DAY_MS, {}, {}, ())
    source = Data(
        reader="table",
        folder=folder,
        prepared="prepared",
        files=("hours/*.parquet",),
        split=split,
        label="click",
        time="time",
        context=("user",),
        candidate=("ad",),
    )
    assert training_of(source, period, tmp_path)[1] == is_suspect


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, pl.DataFrame]:
    """Two bundles, and the rows of a log."""
    folder = tmp_path_factory.mktemp("pair")
    new, old = (write_small_bundle(folder / f"b{seed}", seed=seed) for seed in (0, 1))
    return new, old, draw_joined_log(folder / "joined", new, rows=400, hours=2)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"weight": pl.lit(1e308)},
            'row 1: column "weight" holds 1e+308; expected a number above 0 and at most 1e+100',
        ),
        ({"weight": pl.concat_list("weight")}, 'column "weight" has the type List(Float64); expected text or numbers'),
        ({"click": pl.concat_list("click")}, 'column "click" has the type List(Int8); expected text or numbers'),
        ({"place": pl.concat_list("weight")}, 'column "place" has the type List(Float64); expected text or numbers'),
        ({"place": pl.lit(b"\xff")}, 'column "place" has the type Binary; expected text or numbers'),
        ({"time": pl.col("time").dt.replace_time_zone(None)}, "expected a Datetime in UTC"),
        ({"time": pl.col("time").dt.convert_time_zone("Asia/Tokyo")}, "expected a Datetime in UTC"),
        ({"time": pl.col("time").dt.epoch("ms")}, 'column "time" has the type Int64; expected a Datetime in UTC'),
        ({"time": pl.lit(None, pl.Datetime("ms", "UTC"))}, 'no row has a value in the column "time"'),
    ],
)
def test_columns_with_wrong_types_or_values_are_named(
    changed: dict[str, pl.Expr],
    words: str,
    pair: tuple[Path, Path, pl.DataFrame],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new, old, log = pair
    hours = tmp_path / "joined" / "hours"
    hours.mkdir(parents=True)
    for hour in ("2026-11-29T18", "2026-11-29T19"):
        log.with_columns(place=pl.lit("a")).with_columns(**changed).write_parquet(hours / f"{hour}.parquet")
    assert run(new, old, tmp_path / "joined", "--out", tmp_path / "gate", "--by", "place") == 2
    error = capsys.readouterr().err
    assert f"ctr-gate: {hours}" in error
    assert words in error
    assert not (tmp_path / "gate").exists()


def test_a_pipe_among_the_hours_is_an_error(
    pair: tuple[Path, Path, pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_joined_log(tmp_path / "joined", pair[2])
    os.mkfifo(tmp_path / "joined" / "hours" / "2026-11-29T20.parquet")
    assert run(*pair[:2], tmp_path / "joined", "--out", tmp_path / "gate") == 2
    assert "2026-11-29T20.parquet is not a file" in capsys.readouterr().err


def test_a_segment_field_cannot_have_the_name_of_the_built_in_segments(
    pair: tuple[Path, Path, pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_joined_log(tmp_path / "joined", pair[2].with_columns(pl.lit("a").alias("cold ads")))
    assert run(*pair[:2], tmp_path / "joined", "--out", tmp_path / "gate", "--by", "cold ads") == 2
    assert "this is the name of the segment of rows with unknown ids" in capsys.readouterr().err


def test_a_report_replaces_nothing_but_a_report(
    pair: tuple[Path, Path, pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another folder may contain a copy of a gate.json."""
    new, old, log = pair
    write_joined_log(tmp_path / "joined", log)
    out = tmp_path / "results"
    assert run(new, old, tmp_path / "joined", "--out", out) in (0, 1, 3)
    assert run(new, old, tmp_path / "joined", "--out", out) in (0, 1, 3)
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert run(new, old, tmp_path / "joined", "--out", out) == 2
    assert capsys.readouterr() == (
        "",  # The error precedes the work.
        f"ctr-gate: {out} contains notes.txt, which is not part of a report and would be deleted. Choose another "
        "folder.\n",
    )
    assert (out / "notes.txt").read_text() == "mine"


def test_a_report_is_not_written_into_a_model(
    pair: tuple[Path, Path, pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle with an additional file is not valid any more."""
    new, old, log = pair
    write_joined_log(tmp_path / "joined", log)
    assert run(new, old, tmp_path / "joined", "--out", old / "gate") == 2
    assert f"{old / 'gate'} is inside {old}, which must not change" in capsys.readouterr().err
    open_bundle(old)


@pytest.mark.parametrize("replaced", [0, 1])
def test_a_model_that_is_replaced_meanwhile_gets_no_report(
    replaced: int, pair: tuple[Path, Path, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report would name the version of a model that was not measured, and a store would accept it."""
    models = [Path(shutil.copytree(bundle, tmp_path / bundle.name)) for bundle in pair[:2]]
    write_joined_log(tmp_path / "joined", pair[2])

    def open_and_replace(folder: Path) -> Scorer:
        scorer = open_scorer(folder)
        if folder == models[replaced]:
            shutil.rmtree(folder)
            write_small_bundle(folder, seed=2)
        return scorer

    monkeypatch.setattr("export.gate.gate.open_scorer", open_and_replace)
    with pytest.raises(ValueError, match=f"{models[replaced]} was replaced while it was being compared"):
        gate(models[0], models[1], tmp_path / "joined", Limits())
