"""ctr-predict: a file of rows becomes a file of the probabilities that the server would return."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.bundle import open_bundle
from contract.schema import Field
from export.cli.predict import main
from export.predict import predict as predicting
from export.predict import rows as reading
from export.predict.rows import sent_column
from export.predict.scorer import open_scorer
from service.app import create_app
from service.settings import Settings
from tests.support.examples import examples
from tests.support.runs import DATA
from tests.support.small_bundle import CONTEXT, FIELDS, TOKENS, write_small_bundle

Row = Mapping[str, Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_bundle(tmp_path_factory.mktemp("bundles") / "small")


def some_rows(count: int = 60) -> pl.DataFrame:
    """Return rows with known, unknown and missing values, and an id."""
    random = np.random.default_rng(5)
    columns: dict[str, Any] = {"id": range(count)}
    for name, tokens in TOKENS.items():
        columns[name] = random.choice([*tokens, "unseen", ""], count).tolist()
    for name, mean, std in (("age", 30, 10), ("price", 2, 0.5)):
        columns[name] = [None if random.random() < 0.1 else round(random.normal(mean, std), 3) for _ in range(count)]
    return pl.DataFrame(columns, strict=False).with_columns(pl.col(*TOKENS).replace("", None))


async def served(folder: Path, rows: Sequence[Row]) -> list[float]:
    """Return the probability that the service returns for each row. A row is a request with one candidate."""
    schema = open_bundle(folder).schema
    context = {field.name for field in schema.fields if field.side == "context"}
    candidate = {field.name for field in schema.fields} - context
    answers = []
    app = create_app(Settings(bundle=folder))
    async with app.router.lifespan_context(app):
        await app.state.serving.model.scorer.readiness.tested.wait()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ctr") as client:
            for row in rows:
                features = {name: row[name] for name in candidate}
                body = {
                    "context": {name: row[name] for name in context},
                    "candidates": [{"id": 1, "features": features}],
                }
                answer = (await client.post("/v1/score", json=body)).json()
                answers.append(answer["scores"][0]["ctr"])
    return answers


def assert_alike(found: Sequence[float], expected: Sequence[float]) -> None:
    difference = np.abs(np.array(found) - np.array(expected))
    assert difference.max() <= 1e-6
    assert (difference / np.array(expected)).max() <= 1e-4


def ctr_of(path: Path) -> list[float]:
    frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    return frame["ctr"].to_list()


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


async def test_a_bundle_predicts_what_the_server_answers(bundle: Path, tmp_path: Path) -> None:
    rows = some_rows()
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.write_csv(tmp_path / "rows.csv")
    expected = await served(bundle, rows.to_dicts())
    for name in ("rows.parquet", "rows.csv"):
        assert run(bundle, tmp_path / name, "--out", tmp_path / "scores.parquet") == 0
        assert_alike(ctr_of(tmp_path / "scores.parquet"), expected)
    assert len(set(expected)) > 40


async def test_a_run_and_its_bundle_predict_what_the_server_answers(
    run_folder: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    test = run_folder.parent / DATA.folder / "test.parquet"
    pl.read_parquet(test).head(300).write_parquet(tmp_path / "rows.parquet")
    expected = await served(bundle_folder, pl.read_parquet(tmp_path / "rows.parquet").to_dicts())
    for folder in (run_folder, bundle_folder):
        assert run(folder, tmp_path / "rows.parquet", "--out", tmp_path / "scores.parquet") == 0
        assert_alike(ctr_of(tmp_path / "scores.parquet"), expected)


def test_rows_keep_their_order_over_batches_and_files(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = some_rows(100)
    rows.write_csv(tmp_path / "all.csv")
    assert run(bundle, tmp_path / "all.csv", "--out", tmp_path / "all.parquet") == 0
    (tmp_path / "days").mkdir()
    for day, part in enumerate((rows[:33], rows[33:34], rows[34:])):
        (tmp_path / "days" / f"day-{day}.tsv.gz").write_bytes(gzip.compress(part.write_csv(separator="\t").encode()))
    (tmp_path / "days" / "_SUCCESS").touch()
    monkeypatch.setattr(reading, "BATCH_ROWS", 7)
    for out in ("scores.csv", "scores.tsv", "scores.parquet"):
        target = tmp_path / out
        assert run(bundle, tmp_path / "days", "--out", target, "--keep", "id", "--keep", "user") == 0
        found = (
            pl.read_parquet(target) if out.endswith("parquet") else pl.read_csv(target, separator=",\t"["tsv" in out])
        )
        assert found.columns == ["id", "user", "ctr"]
        assert found["id"].cast(pl.Int64).to_list() == list(range(100))
        assert found["user"].to_list() == rows["user"].to_list()
        np.testing.assert_allclose(found["ctr"], ctr_of(tmp_path / "all.parquet"), rtol=1e-6)


def test_the_data_section_of_an_experiment_describes_the_files(bundle: Path, tmp_path: Path) -> None:
    rows = some_rows()
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.rename({"user": "user id"}).write_csv(tmp_path / "rows.csv", separator=";")
    (tmp_path / "shop.toml").write_text(
        '[data]\nreader = "table"\nfolder = "."\nprepared = "p"\ntrain = "a"\nvalid = "b"\ntest = "c"\n'
        'context = ["user"]\ncandidate = ["item"]\ndelimiter = ";"\nrename = { "user id" = "user" }\n'
    )
    assert run(bundle, tmp_path / "rows.parquet", "--out", tmp_path / "a.parquet") == 0
    described = ("--config", tmp_path / "shop.toml", "--keep", "user")
    assert run(bundle, tmp_path / "rows.csv", "--out", tmp_path / "b.parquet", *described) == 0
    assert ctr_of(tmp_path / "b.parquet") == ctr_of(tmp_path / "a.parquet")
    assert pl.read_parquet(tmp_path / "b.parquet")["user"].to_list() == rows["user"].to_list()


def test_a_file_that_needs_a_config_is_an_error_that_names_the_option(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some_rows().write_csv(tmp_path / "rows.csv", separator=";")
    words = (bundle, tmp_path / "rows.csv", "--out", tmp_path / "scores.csv")
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert "Set delimiter in [data] of --config EXPERIMENT.toml to the character between the columns." in error


def test_a_kept_column_that_the_experiment_renames_is_an_error_that_shows_the_new_name(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some_rows().rename({"user": "user id"}).write_csv(tmp_path / "rows.csv")
    (tmp_path / "shop.toml").write_text(
        '[data]\nreader = "table"\nfolder = "."\nprepared = "p"\ntrain = "a"\nvalid = "b"\ntest = "c"\n'
        'context = ["user"]\ncandidate = ["item"]\nrename = { "user id" = "user" }\n'
    )
    words = ("--out", tmp_path / "scores.csv", "--config", tmp_path / "shop.toml", "--keep", "user id")
    assert run(bundle, tmp_path / "rows.csv", *words) == 2
    error = capsys.readouterr().err
    assert "--keep 'user id': [data] renames this column to \"user\". Use --keep user." in error
    assert run(bundle, tmp_path / "rows.csv", *words[:-1], "uid") == 2
    error = capsys.readouterr().err
    assert "--keep uid: " in error
    assert 'rows.csv has no column "uid". Use one of: id, user, ' in error


BAD = "user,weekday,age,item,cost,price\nu1,sunday,31,4001,free,1\nu2,sunday,old,4001,free,2\nu3,monday,,4002,paid,x\n"


def test_a_row_that_cannot_be_encoded_stops_with_its_file_and_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text(BAD)
    assert run(bundle, tmp_path / "rows.csv", "--out", tmp_path / "scores.csv") == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/rows.csv:3: field 'age' must be a number or null, got a string: 'old'. Fix the row" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


def test_rows_that_cannot_be_encoded_can_have_no_probability(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.csv").write_text(BAD)
    for batch_rows in (1, 16):
        monkeypatch.setattr(reading, "BATCH_ROWS", batch_rows)
        assert run(bundle, tmp_path / "rows.csv", "--out", tmp_path / "scores.csv", "--on-bad-row", "null") == 0
        captured = capsys.readouterr()
        assert "2 rows could not be encoded, and have no probability." in captured.err
        assert "rows.csv:3: field 'age'" in captured.err
        assert f"wrote {tmp_path}/scores.csv: 3 rows" in captured.out
        first, *others = ctr_of(tmp_path / "scores.csv")
        assert 0 < first < 1
        assert others == [None, None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.csv", "--out", "s.csv"], "nowhere.csv: no such file"),
        (["rows.csv", "--out", "s.json"], "s.json: unknown format. Use .parquet, .csv or .tsv."),
        (["rows.csv", "--out", "rows.csv"], "rows.csv is one of the files to score. Choose a different file."),
        (["rows.csv", "--out", "s.csv", "--keep", "ctr"], 'the output has a column "ctr"'),
        (
            ["rows.csv", "--out", "s.csv", "--keep", "id"],
            'rows.csv has no column "id". Use one of: user, weekday',
        ),
        (["short.csv", "--out", "s.csv"], 'short.csv: no column "item". The file has user. Add the column'),
        (["empty.csv", "--out", "s.csv"], "empty.csv: no rows."),
        (["rows.csv", "rows.parquet", "--out", "s.csv"], "the files have different formats: .csv, .parquet."),
    ],
)
def test_wrong_arguments_write_nothing(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text(BAD)
    Path("short.csv").write_text("user\nu1\n")
    Path("empty.csv").write_text(BAD.splitlines()[0] + "\n")
    some_rows().write_parquet("rows.parquet")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(bundle, *words) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_is_neither_a_run_nor_a_bundle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text(BAD)
    assert run(tmp_path, tmp_path / "rows.csv", "--out", tmp_path / "s.csv") == 2
    assert "is neither a bundle (it has no manifest.json) nor a run" in capsys.readouterr().err


def test_an_interrupted_prediction_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some_rows().write_csv(tmp_path / "rows.csv")
    (tmp_path / "scores.csv").write_text("the old scores")
    monkeypatch.setattr(reading, "BATCH_ROWS", 20)
    scored = predicting.score_batch
    calls = []

    def interrupt(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(predicting, "score_batch", interrupt)
    assert run(bundle, tmp_path / "rows.csv", "--out", tmp_path / "scores.csv") == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert (tmp_path / "scores.csv").read_text() == "the old scores"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "scores.csv"]


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
A_ROW = st.fixed_dictionaries(
    {
        **{name: st.none() | st.sampled_from(tokens) | TEXT for name, tokens in TOKENS.items()},
        "age": st.none() | st.floats(-1e6, 1e6),
        "price": st.none() | st.integers(-100, 100),
    }
)


@settings(max_examples=examples(25), deadline=None)
@given(st.lists(A_ROW, min_size=1, max_size=8))
def test_text_and_parquet_give_the_same_probabilities(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, rows: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    types = dict.fromkeys(TOKENS, pl.String) | {"age": pl.Float64, "price": pl.Int64}
    frame = pl.DataFrame(rows, schema=types)
    frame.write_parquet(folder / "rows.parquet")
    frame.write_csv(folder / "rows.csv")
    for name in ("parquet", "csv"):
        assert run(bundle, folder / f"rows.{name}", "--out", folder / f"{name}.parquet") == 0
    assert ctr_of(folder / "csv.parquet") == ctr_of(folder / "parquet.parquet")


@pytest.mark.parametrize(
    ("column", "field", "sent"),
    [
        (pl.Series(["1.50", " 2 ", "", None, "x", "n/a"]), Field("bid", "candidate", "numeric", missing=("n/a",)),
         [1.5, 2.0, None, None, "x", "n/a"]),  # the contract reads the field's markers
        (pl.Series(["NaN", "-inf", "inf", "1"]), Field("bid", "candidate", "numeric", missing=("nan", "-inf", "inf")),
         [None, None, None, 1.0]),
        (pl.Series([1.0, float("inf"), float("-inf")]), Field("bid", "candidate", "numeric", missing=("-inf", "+inf")),
         [1.0, None, None]),
        (pl.Series([float("inf"), 2.0], dtype=pl.Float32), Field("bid", "candidate", "numeric", missing=("inf",)),
         [None, 2.0]),
        (pl.Series(["1.50", None]).cast(pl.Decimal(8, 2)), Field("bid", "candidate", "numeric"), [1.5, None]),
        (pl.Series(["1.50", "0017"]), CONTEXT[0], ["1.50", "0017"]),
        (pl.Series([0.1, None], dtype=pl.Float32), CONTEXT[0], [0.1, None]),
        (pl.Series([1.0, float("nan")]), Field("bid", "candidate", "numeric", missing=("nan",)), [1.0, None]),
        (pl.Series([True, None]), CONTEXT[0], [True, None]),
        (pl.Series(["a", None], dtype=pl.Categorical), CONTEXT[0], ["a", None]),
        (pl.Series([0]).cast(pl.Datetime("ms")), CONTEXT[0], ["1970-01-01T00:00:00Z"]),
        (pl.Series([0]).cast(pl.Datetime("us", "Asia/Tokyo")), CONTEXT[0], ["1970-01-01T00:00:00Z"]),
        (pl.Series([1]).cast(pl.Date), CONTEXT[0], ["1970-01-02"]),
    ],
)  # fmt: skip
def test_values_are_what_a_client_would_send(column: pl.Series, field: Field, sent: list[Any]) -> None:
    found = sent_column(column, [field])
    assert found == sent
    assert json.dumps(found) == json.dumps(sent)


def test_the_scorer_of_a_bundle_needs_no_log(bundle: Path) -> None:
    scorer = open_scorer(bundle)
    assert scorer.schema == FIELDS
    assert scorer.data is None


def test_compressed_quoted_and_partitioned_files_are_read_as_ctr_prepare_reads_them(
    bundle: Path, tmp_path: Path
) -> None:
    rows = some_rows()
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.lazy().sink_csv(tmp_path / "rows.csv.zst", compression="zstd")
    for (weekday,), part in rows.fill_null("").partition_by("weekday", as_dict=True).items():
        folder = tmp_path / "log" / f"weekday={weekday or '__HIVE_DEFAULT_PARTITION__'}"
        folder.mkdir(parents=True)
        part.drop("weekday").write_parquet(folder / "part-0.parquet")
    assert run(bundle, tmp_path / "rows.parquet", "--out", tmp_path / "a.parquet") == 0
    assert run(bundle, tmp_path / "rows.csv.zst", "--out", tmp_path / "b.parquet") == 0
    assert ctr_of(tmp_path / "b.parquet") == ctr_of(tmp_path / "a.parquet")
    assert run(bundle, tmp_path / "log", "--out", tmp_path / "c.parquet", "--keep", "id") == 0
    assert pl.read_parquet(tmp_path / "c.parquet").sort("id")["ctr"].to_list() == ctr_of(tmp_path / "a.parquet")


def test_fields_that_read_one_column_get_the_value_that_each_can_read() -> None:
    number = Field("bid", "candidate", "numeric", missing=("n/a",))
    bucket = Field("bid_bucket", "candidate", transform="log_square", source="bid", missing=("n/a", "nan"))
    column = pl.Series("bid", ["1.50", "n/a", "NaN"])
    for fields in ([number, bucket], [bucket, number]):
        assert sent_column(column, fields) == [1.5, "n/a", None]


def test_partitions_of_parent_folders_and_of_columns_in_the_file_are_not_read(bundle: Path, tmp_path: Path) -> None:
    rows = some_rows()
    folder = tmp_path / "user=u1" / "weekday=1"
    folder.mkdir(parents=True)
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.write_parquet(folder / "rows.parquet")
    rows.drop("user").write_parquet(folder / "other.parquet")
    assert run(bundle, tmp_path / "rows.parquet", "--out", tmp_path / "a.parquet") == 0
    for argument in (folder / "rows.parquet", tmp_path / "user=*" / "*" / "rows.parquet"):
        assert run(bundle, argument, "--out", tmp_path / "b.parquet") == 0
        assert ctr_of(tmp_path / "b.parquet") == ctr_of(tmp_path / "a.parquet")
    assert run(bundle, folder / "other.parquet", "--out", tmp_path / "c.parquet") == 2


@pytest.mark.parametrize("out", ["scores.csv", "scores.parquet"])
def test_kept_columns_have_one_type_in_all_files(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    log = tmp_path / "log"
    log.mkdir()
    some_rows().write_parquet(log / "a.parquet")
    some_rows().with_columns(pl.col("id").cast(pl.String)).write_parquet(log / "b.parquet")
    assert run(bundle, log, "--out", tmp_path / out, "--keep", "id", "--keep", "user") == 0
    found = pl.read_parquet(tmp_path / out) if out.endswith("parquet") else pl.read_csv(tmp_path / out)
    assert found["id"].cast(pl.Int64).to_list() == [*range(60)] * 2
    some_rows().with_columns(pl.col("id") + 0.5).write_parquet(log / "b.parquet")
    assert run(bundle, log, "--out", tmp_path / out, "--keep", "id") == 2
    assert 'column "id" has the type Int64 in ' in capsys.readouterr().err


@pytest.mark.parametrize("value", [pl.lit(b"x"), pl.concat_list(pl.lit(1), pl.lit(2))])
def test_values_that_text_cannot_hold_are_kept_only_in_parquet(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: pl.Expr
) -> None:
    some_rows().with_columns(tags=value).write_parquet(tmp_path / "rows.parquet")
    assert run(bundle, tmp_path / "rows.parquet", "--out", tmp_path / "s.csv", "--keep", "tags") == 2
    assert "--keep tags: the column has the type " in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()
    assert run(bundle, tmp_path / "rows.parquet", "--out", tmp_path / "s.parquet", "--keep", "tags") == 0


def test_decimals_are_read_as_ctr_prepare_reads_them(bundle: Path, tmp_path: Path) -> None:
    rows = some_rows().with_columns(pl.col("price").round(2))
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.with_columns(pl.col("price").cast(pl.Decimal(10, 2))).write_parquet(tmp_path / "decimals.parquet")
    for name in ("rows", "decimals"):
        assert run(bundle, tmp_path / f"{name}.parquet", "--out", tmp_path / f"{name}.csv") == 0
    assert ctr_of(tmp_path / "decimals.csv") == ctr_of(tmp_path / "rows.csv")
