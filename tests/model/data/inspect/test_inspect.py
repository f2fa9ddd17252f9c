"""ctr-inspect: a log of any format becomes a first experiment, with a warning about each suspicious column."""

import gzip
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.cli import prepare
from model.cli.inspect import main
from model.data.inspect import layout
from model.data.inspect import sample as sampling
from model.data.inspect.inspect import Inspected, inspect_log
from model.data.inspect.layout import Period, duration, split_names, time_fields
from model.data.readers.named import find_named_files
from model.data.synthetic import generate
from model.data_config import Data, SplitAtRandom, SplitByTime, read_data
from tests.support.examples import examples

JANUARY = 1_767_225_600  # 2026-01-01T00:00:00Z


def clicks(rows: int = 2000, days: float = 9.0) -> pl.DataFrame:
    """Return an ad server's log in which each request shows two ads."""
    random = np.random.default_rng(3)
    request = np.arange(rows) // 2
    user = random.integers(0, 300, rows // 2)[request]
    ad = random.integers(0, 40, rows)
    clicked = random.random(rows) < 1 / (1 + np.exp(2 - random.normal(size=40)[ad] - random.normal(size=300)[user]))
    seconds = JANUARY + np.sort(random.integers(0, int(days * 86400), rows // 2))[request]
    return pl.DataFrame(
        {
            "click": clicked.astype(np.int64),
            "shown_at": seconds,
            "user": [f"u{n}" for n in user],
            "country": [("DE", "TR", "FR")[n % 3] for n in user],
            "ad": [f"ad-{n}" for n in ad],
            "campaign": ad // 5,
            "bid": random.uniform(0.1, 2, rows).round(3),
        }
    )


def inspected(*frames: pl.DataFrame, folder: Path, name: str = "log.csv", **text: Any) -> Inspected:
    for number, frame in enumerate(frames):
        frame.write_csv(folder / f"{number}-{name}", **text)
    return inspect_log([str(folder / f"*{name}")], folder, "shop")


def read(inspected: Inspected, folder: Path) -> Data:
    (folder / "shop.toml").write_text(inspected.experiment())
    return read_data(folder / "shop.toml")


def test_a_log_with_semicolons_text_labels_and_times_becomes_an_experiment(tmp_path: Path) -> None:
    log = clicks()
    log = log.with_columns(
        pl.when(pl.col("click") == 1).then(pl.lit("click")).otherwise(pl.lit("no click")).alias("click"),
        pl.from_epoch("shown_at").dt.strftime("%Y-%m-%d %H:%M:%S"),
        pl.when(pl.col("country") == "FR").then(pl.lit(r"\N")).otherwise("country").alias("country"),
        pl.when(pl.col("bid") > 1.9).then(-999999.0).otherwise("bid").alias("bid"),
    ).rename({"user": "user id"})
    found = inspected(log, folder=tmp_path, separator=";")
    data = read(found, tmp_path)
    assert (data.folder, data.files, data.delimiter, data.quote) == (".", ("*log.csv",), ";", None)
    assert data.split == SplitByTime(valid="1d", test="1d")
    assert (data.label, data.positive, data.time, data.missing) == ("click", ("click",), "shown_at", (r"\N",))
    assert data.rename == {"user id": "user_id"}
    assert (data.context, data.candidate, data.numeric) == (("user_id", "country"), ("ad", "campaign", "bid"), ("bid",))
    hour, weekday, bid = data.fields
    assert (hour.name, hour.source, hour.side, hour.transform) == ("hour", "shown_at", "context", "hour")
    assert (weekday.name, weekday.source, weekday.side, weekday.transform) == (
        "weekday",
        "shown_at",
        "context",
        "weekday",
    )
    assert (bid.name, bid.missing) == ("bid", ("-999999",))
    (warning,) = found.warnings
    assert warning.startswith('column "bid": -999999 is in ')
    text = found.experiment()
    assert '# unit = "user_id"' in text
    assert '    "campaign",  # 8 values' in text
    assert "batch_size = 256" in text


def test_files_that_are_named_train_valid_and_test_can_be_prepared_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = clicks(3000).drop("shown_at")
    (tmp_path / "shop").mkdir()
    for split, part in (("train", log[:2000]), ("val", log[2000:2500]), ("test", log[2500:])):
        part.write_parquet(tmp_path / "shop" / f"{split}.parquet")
    toml = tmp_path / "shop.toml"
    assert main([str(tmp_path / "shop"), "--data", str(tmp_path), "--out", str(toml)]) == 0
    assert f"wrote {toml}. Check it, and then run: ctr-prepare {toml}" in capsys.readouterr().out
    data = read_data(toml)
    assert (data.folder, data.train, data.valid, data.test) == ("shop", "train.parquet", "val.parquet", "test.parquet")
    assert prepare.main([str(toml), "--data", str(tmp_path)]) == 0
    assert "warning" not in capsys.readouterr().out


def test_the_demo_log_is_understood(tmp_path: Path) -> None:
    assert generate.main(["--data", str(tmp_path), "--requests", "2000"]) == 0
    found = inspect_log([str(tmp_path / "generated")], tmp_path, "demo")
    data = read(found, tmp_path)
    assert data.label == "click"
    assert {"user", "age_band", "country", "device", "slot", "hour", "session_depth"} <= {*data.context}
    assert {"ad", "campaign", "advertiser", "category", "format", "bid"} <= {*data.candidate}
    assert {*data.numeric} == {"session_depth", "bid"}
    assert found.found.request == "request"
    assert found.found.columns["true_ctr"].note == "looks like the output of a model"
    assert found.warnings == ['column "exchange" has the value "main" in every sampled row. Remove the field.']


def test_an_existing_file_is_replaced_only_with_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clicks().write_csv(tmp_path / "log.csv")
    (tmp_path / "shop.toml").write_text("mine")
    words = [str(tmp_path / "log.csv"), "--out", str(tmp_path / "shop.toml"), "--data", str(tmp_path)]
    assert main(words) == 2
    assert "shop.toml exists. Choose another name, or add --force to replace it." in capsys.readouterr().err
    assert (tmp_path / "shop.toml").read_text() == "mine"
    assert main([*words, "--force"]) == 0
    assert read_data(tmp_path / "shop.toml").label == "click"


def test_without_out_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clicks().write_csv(tmp_path / "log.csv")
    assert main([str(tmp_path / "log.csv"), "--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2,000 rows in 1 file" in out
    assert "add --out shop.toml" in out
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "csv.zst", "parquet", "crlf", "bom", "quoted tsv", "pipe"])
def test_every_format_gives_the_same_columns(tmp_path: Path, kind: str) -> None:
    log = clicks(400)
    plain = log.write_csv()
    files: dict[str, tuple[str, bytes]] = {
        "csv": ("log.csv", plain.encode()),
        "tsv": ("log.tsv", log.write_csv(separator="\t").encode()),
        "csv.gz": ("log.csv.gz", gzip.compress(plain.encode())),
        "crlf": ("log.csv", plain.replace("\n", "\r\n").encode()),
        "bom": ("log.csv", b"\xef\xbb\xbf" + plain.encode()),
        "quoted tsv": ("log.tsv", log.write_csv(separator="\t", quote_style="always").encode()),
        "pipe": ("log.txt", log.write_csv(separator="|").encode()),
    }
    if kind == "parquet":
        path = tmp_path / "log.parquet"
        log.write_parquet(path)
    elif kind == "csv.zst":
        path = tmp_path / "log.csv.zst"
        log.lazy().sink_csv(path, compression="zstd")
    else:
        path = tmp_path / files[kind][0]
        path.write_bytes(files[kind][1])
    found = inspect_log([str(path)], tmp_path, "shop")
    data = read(found, tmp_path)
    assert len(found.sample.rows) == 400
    assert (data.label, data.time) == ("click", "shown_at")
    assert (data.context, data.candidate, data.numeric) == (("user", "country"), ("ad", "campaign", "bid"), ("bid",))
    assert data.quote == ('"' if kind == "quoted tsv" else None)
    assert data.delimiter == ("|" if kind == "pipe" else "")


def test_a_quote_inside_an_unquoted_value_switches_quoting_off(tmp_path: Path) -> None:
    log = clicks(200).with_columns(title=pl.lit('Curved monitor 19" wide'))
    text = "\n".join([",".join(log.columns), *(",".join(map(str, row)) for row in log.iter_rows())])
    (tmp_path / "log.csv").write_text(text + "\n")
    found = inspect_log([str(tmp_path / "log.csv")], tmp_path, "shop")
    assert len(found.sample.rows) == 200
    assert read(found, tmp_path).quote == ""


def test_a_file_without_a_header_gets_names_for_its_columns(tmp_path: Path) -> None:
    clicks(400).drop("shown_at").write_csv(tmp_path / "log.csv", include_header=False)
    found = inspect_log([str(tmp_path / "log.csv")], tmp_path, "shop")
    data = read(found, tmp_path)
    assert data.columns == tuple(f"column_{n}" for n in range(1, 7))
    assert data.label == "column_1"
    assert "# UNSURE: the first line looks like a row" in found.experiment()
    assert found.found.label_unsure == "the name does not suggest that this is the label"


def test_a_large_log_is_sampled_and_only_its_size_is_exact(tmp_path: Path) -> None:
    log = clicks(6000, days=2.0)
    log.write_parquet(tmp_path / "log.parquet")
    log.write_csv(tmp_path / "log.csv")
    for name in ("log.parquet", "log.csv"):
        found = inspect_log([str(tmp_path / name)], tmp_path, "shop", rows=500)
        assert len(found.sample.rows) == 500
        assert not found.sample.is_complete
        assert found.total == 6000
        assert found.period is not None
        assert found.period.span == pytest.approx(2 * 86400, rel=0.01)  # from all rows
        assert found.experiment().startswith("# Written by ctr-inspect from 500 rows.")


def test_many_files_are_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_SAMPLED_FILES", 3)
    log = clicks(1000)
    for number in range(10):
        log[number * 100 : number * 100 + 100].write_csv(tmp_path / f"part-{number:05}.csv")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part.csv.crc").touch()
    found = inspect_log([str(tmp_path)], tmp_path.parent, "shop")
    assert len(found.sample.sources) == 10
    assert len(found.sample.rows) == 400  # files 0, 4, 8, and the last one
    assert found.total == 1000
    assert read(found, tmp_path).files == (tmp_path.name,)
    listed = sorted(str(path) for path in tmp_path.glob("part-*.csv"))
    assert read(inspect_log(listed, tmp_path.parent, "shop"), tmp_path).files == ("*.csv",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "log.csv: no such file. Give files, folders or globs."),
        ({"log.csv": ""}, "log.csv: the file is empty."),
        ({"log.csv": "click,user\n"}, "log.csv: has no rows."),
        ({"log.csv": "click,user,user\n1,a,b\n"}, 'log.csv:1: the column "user" occurs twice. Rename one of them.'),
        ({"log.csv": "click,user\n1,a\n", "other.csv": "click,ad\n1,b\n"}, 'other.csv: no column "user", which'),
        ({"log.csv": "user,ad\nu,a\nv,b\n"}, "no label was found. No column contains 0 and 1, or values such as click"),
        ({"log.csv": "click,user\n" + "1,a\n0,b\n" * 9}, "no categorical column is left for the candidate side"),
    ],
)
def test_a_log_that_cannot_become_an_experiment_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in files or ["log.csv"]]
    assert main([*paths, "--out", str(tmp_path / "shop.toml")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "shop.toml").exists()


def test_files_of_an_unknown_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text("{}")
    with pytest.raises(ValueError, match=r"unknown format\. Use \.parquet"):
        find_named_files([str(tmp_path / "log.json")])
    with pytest.raises(ValueError, match=r"the folder has no \.parquet"):
        find_named_files([str(tmp_path)])


def test_a_text_in_a_column_of_numbers_is_declared_missing(tmp_path: Path) -> None:
    log = clicks().with_columns(pl.when(pl.col("bid") < 0.2).then(pl.lit("-")).otherwise("bid").alias("bid"))
    data = read(inspected(log, folder=tmp_path), tmp_path)
    assert data.numeric == ("bid",)
    assert [(each.name, each.missing) for each in data.fields if each.name == "bid"] == [("bid", ("-",))]


@pytest.mark.parametrize(
    ("span", "is_days", "length", "transforms"),
    [
        (90 * 86400, False, "7d", ["hour", "weekday"]),
        (30 * 86400, False, "3d", ["hour", "weekday"]),
        (9 * 86400, False, "1d", ["hour", "weekday"]),
        (9 * 86400, True, "1d", ["weekday"]),
        (3 * 86400, False, "1d", ["hour"]),
        (2 * 86400, True, "1d", []),  # three days
        (86400, True, None, []),
        (86400, False, "2h", []),  # the hours of test do not occur in train
        (300, False, "30s", []),
        (5, False, None, []),
    ],
)
def test_valid_and_test_are_about_a_tenth_of_the_log_and_time_fields_occur_again(
    span: float, is_days: bool, length: str | None, transforms: list[str]
) -> None:
    period = Period(span, is_days)
    assert duration(period) == length
    assert time_fields(period, is_split_by_time=length is not None) == transforms


@pytest.mark.parametrize("kind", ["date", "text", "seconds", "datetime", "milliseconds", "text with offset"])
def test_times_in_any_notation_give_the_period(tmp_path: Path, kind: str) -> None:
    log = clicks(days=12.0)
    moment = pl.from_epoch("shown_at")
    notations = {
        "date": moment.dt.date(),
        "text": moment.dt.strftime("%Y-%m-%d"),
        "seconds": pl.col("shown_at"),
        "datetime": moment,
        "milliseconds": pl.col("shown_at") * 1000,
        "text with offset": moment.dt.strftime("%Y-%m-%dT%H:%M:%S+00:00"),
    }
    log.with_columns(shown_at=notations[kind]).write_parquet(tmp_path / "log.parquet")
    found = inspect_log([str(tmp_path / "log.parquet")], tmp_path, "shop")
    assert found.period is not None
    is_days = kind in ("date", "text")
    assert found.period.is_days is is_days
    assert found.period.span == (11 * 86400 if is_days else pytest.approx(12 * 86400, rel=0.01))
    data = read(found, tmp_path)
    assert data.split == SplitByTime(valid="1d", test="1d")
    assert [each.name for each in data.fields] == (["weekday"] if is_days else ["hour", "weekday"])


def test_a_log_without_times_is_split_at_random(tmp_path: Path) -> None:
    data = read(inspected(clicks().drop("shown_at"), folder=tmp_path), tmp_path)
    assert data.split == SplitAtRandom(valid=0.1, test=0.1)


def test_only_three_clear_names_are_splits() -> None:
    def names(*files: str) -> dict[str, str]:
        return split_names([Path(file) for file in files], Path.cwd())

    assert names("train.csv", "validation.csv", "test.csv") == {
        "train": "train.csv",
        "valid": "validation.csv",
        "test": "test.csv",
    }
    assert names("x_train.csv", "x_dev.csv", "x_test.csv")["valid"] == "x_dev.csv"
    assert names("train.csv", "test.csv") == {}
    assert names("train-1.csv", "train-2.csv", "test.csv") == {}
    assert names("restrain.csv", "value.csv", "latest.csv") == {}


CLASHING = ["*", "^.*$", "count", "rows", "value", "hour", "__group__"]
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, unique=True, max_size=4
)


@settings(max_examples=examples(50), deadline=None)
@given(NAMES, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8))
def test_any_names_and_values_give_a_valid_experiment(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], value: str
) -> None:
    folder = tmp_path_factory.mktemp("log")
    names = [*names, *CLASHING]
    fixed = {"click": [0, 1] * 20, "user": [f"u{n % 7}" for n in range(40)], "ad": [f"a{n % 6}" for n in range(40)]}
    log = pl.DataFrame({name: [value, "b"] * 20 for name in names if name not in fixed} | fixed)
    log.write_parquet(folder / "log.parquet")
    text = inspect_log([str(folder / "log.parquet")], folder, "shop").experiment()
    document = tomllib.loads(text)["data"]
    assert document["label"] == "click"
    used = [*document["context"], *document["candidate"]]
    assert {"user", "ad"} <= {*used}
    assert len(used) == len({*used})


def test_very_long_values_make_the_sample_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_SAMPLE_BYTES", 1 << 20)
    log = clicks(200).with_columns(title=pl.lit("x" * 140_000))
    log.write_csv(tmp_path / "log.csv")
    found = inspect_log([str(tmp_path / "log.csv")], tmp_path, "shop")
    assert len(found.sample.rows) == 7
    assert found.total == 200


def test_hive_partitions_are_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = clicks(900).drop("shown_at")
    for number, site in enumerate(("news", "sport", "games")):
        folder = tmp_path / "log" / f"site={site}"
        folder.mkdir(parents=True)
        log[number * 300 : number * 300 + 300].write_parquet(folder / "part-00000.snappy.parquet")
    toml = tmp_path / "shop.toml"
    assert main([str(tmp_path / "log"), "--data", str(tmp_path), "--out", str(toml)]) == 0
    data = read_data(toml)
    assert data.files == ("log",)
    assert data.context == ("user", "country", "site")
    assert prepare.main([str(toml), "--data", str(tmp_path)]) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("max_counted_bytes", [1 << 30, 0])
@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_rows_from_all_parts_of_a_large_file_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, max_counted_bytes: int
) -> None:
    monkeypatch.setattr(sampling, "MAX_COUNTED_BYTES", max_counted_bytes)
    monkeypatch.setattr(layout, "MAX_COUNTED_BYTES", max_counted_bytes)
    log = clicks(6000, days=9.0).with_columns(
        site=pl.when(pl.int_range(pl.len()) < 1000).then(pl.lit("news")).otherwise(pl.lit("sport")),
        title=pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit('one,\n"two"\nthree')).otherwise(pl.lit("four")),
    )
    log.write_parquet(tmp_path / name) if name.endswith("parquet") else log.write_csv(tmp_path / name)
    found = inspect_log([str(tmp_path / name)], tmp_path, "shop", rows=500)
    assert 300 <= len(found.sample.rows) <= 500  # values that span several lines make the sample smaller
    assert not found.sample.is_complete
    assert {*found.sample.rows["title"]} == {*log["title"]}
    assert found.period is not None
    assert found.period.span == pytest.approx(9 * 86400, rel=0.02)
    assert found.found.columns["site"].role == "field"


def test_the_period_of_a_log_of_which_only_the_head_was_read_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_COUNTED_BYTES", 0)
    log = clicks(6000).with_columns(site=pl.lit("news"))
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(log.write_csv().encode()))
    found = inspect_log([str(tmp_path / "log.csv.gz")], tmp_path, "shop", rows=500)
    assert found.period is None
    assert "UNSURE: a split by time is better, but only the first rows were read" in found.experiment()
    assert found.found.columns["site"].unsure == "the first rows contain only this value, and no other rows were read"
    assert not any("site" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("notation", "value", "reason"),
    [
        *(
            (notation, marker, 'but column "shown_at" is missing in 1 row')
            for notation in ("text", "seconds")
            for marker in ("", "NULL", "-")
        ),
        ("text", "2026-13-45 10:00", 'but column "shown_at" contains values that are not times in 1 row'),
    ],
)
def test_a_log_is_split_by_time_only_if_every_row_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], notation: str, value: str, reason: str
) -> None:
    text = pl.from_epoch("shown_at").dt.strftime("%Y-%m-%d %H:%M:%S")
    time = text if notation == "text" else pl.col("shown_at").cast(pl.String)
    log = clicks(3000).with_columns(shown_at=pl.when(pl.int_range(pl.len()) == 70).then(pl.lit(value)).otherwise(time))
    log.write_csv(tmp_path / "log.csv")
    toml = tmp_path / "shop.toml"
    assert main([str(tmp_path / "log.csv"), "--data", str(tmp_path), "--out", str(toml)]) == 0
    assert reason in toml.read_text()
    data = read_data(toml)
    assert (data.split, data.time) == (SplitAtRandom(valid=0.1, test=0.1), "")
    assert prepare.main([str(toml), "--data", str(tmp_path)]) == 0
    assert "warning" not in capsys.readouterr().out


def test_time_is_not_written_beside_files_of_the_splits(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        clicks().write_csv(tmp_path / f"{split}.csv")
    data = read(inspect_log([str(tmp_path)], tmp_path, "shop"), tmp_path)
    assert (data.train, data.time) == ("train.csv", "")
    assert data.fields[0].source == "shown_at"


@pytest.mark.parametrize("argument", ["log", "log/day=*", "log/*/part-0.csv", "user=me/log"])
def test_ctr_prepare_finds_the_same_files_and_partitions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    root = tmp_path / "user=you" / argument.split("log")[0] / "log"
    for day in (1, 2, 3):
        folder = root / f"day={day}"
        folder.mkdir(parents=True)
        clicks(900).drop("shown_at").write_csv(folder / "part-0.csv")
    if "*" not in argument:
        (root / "README.md").write_text("# A log")
        (root / "schema.json").write_text("{}")
    toml = tmp_path / "shop.toml"
    words = ["--data", str(tmp_path / "user=you")]
    assert main([str(tmp_path / "user=you" / argument), *words, "--out", str(toml)]) == 0
    data = read_data(toml)
    assert "day" in data.context
    assert "you" not in toml.read_text()
    assert "me" not in tomllib.loads(toml.read_text())["data"]["context"]
    assert prepare.main([str(toml), *words]) == 0
    assert "2,700" in capsys.readouterr().out


def test_a_partition_does_not_replace_a_column_of_the_file(tmp_path: Path) -> None:
    for country in ("DE", "TR"):
        folder = tmp_path / "log" / f"country={country}"
        folder.mkdir(parents=True)
        clicks(900).write_parquet(folder / "part-0.parquet")
    found = inspect_log([str(tmp_path / "log")], tmp_path, "shop")
    assert found.found.columns["country"].column.values == {"DE", "TR", "FR"}


def test_a_small_log_gets_a_recipe_with_penalties(tmp_path: Path) -> None:
    log = clicks(5000)
    document = tomllib.loads(inspected(log, folder=tmp_path).experiment())
    assert document["training"] == {"batch_size": 256, "embedding_l2": 0.3, "net_l2": 0.3}
    large = pl.concat([log] * 21)
    assert "training" not in tomllib.loads(inspected(large, folder=tmp_path, name="large.csv").experiment())


def test_a_url_is_inspected_like_a_file(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    clicks().write_parquet(tmp_path / "log.parquet")
    url = f"file://{tmp_path}/log.parquet"
    assert read(inspect_log([url], tmp_path, "shop"), tmp_path).files == (url,)
