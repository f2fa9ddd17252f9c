"""Timestamps in a log: every notation and type gives the token that the server computes for the same value."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.encode import Encoder
from contract.schema import Field, Transform
from contract.tokens import tokenizer
from contract.vocabulary import open_vocabulary
from model.cli.prepare import main
from model.data.prepare.columns import BadValueError, time_column
from model.data.prepare.prepared import read_prepared
from model.data.readers.log import SPLITS
from tests.support.examples import examples
from tests.support.timestamps import MOMENTS, TOML, ZONES, all_notations

TYPES = [pl.Int64(), pl.Float64(), pl.String()]
PARTS: tuple[Transform, ...] = ("hour", "weekday", "day")
LOG = """click,shown_at,ad,price
1,2026-01-30T21:30:00Z,a,1
0,2026-01-31 01:30:00+03:00,b,10
1,1769893200,a,100
0,,b,1000
"""


def write(folder: Path, log: str, toml: str = TOML) -> str:
    (folder / "timed").mkdir()
    for split in SPLITS:
        (folder / f"timed/{split}.csv").write_text(log)
    (folder / "timed.toml").write_text(toml)
    return str(folder / "timed.toml")


@settings(max_examples=examples(100), deadline=None)
@given(all_notations(), st.sampled_from(ZONES), st.sampled_from(PARTS))
def test_every_notation_gives_the_same_token_in_ctr_prepare_and_in_the_server(
    drawn: tuple[int, list[Any]], zone: str, part: Transform
) -> None:
    seconds, values = drawn
    field = Field("x", "context", transform=part, timezone=zone, source="shown_at")
    texts = [value for value in values if isinstance(value, str)]
    floats = [value for value in values if isinstance(value, float)]
    integers = [value for value in values if isinstance(value, int)]
    moment = pl.Series([datetime.fromtimestamp(seconds, UTC)])
    columns = [
        *(pl.Series(column) for column in (texts, floats, integers)),
        *(moment.cast(pl.Datetime(unit)) for unit in ("ms", "us", "ns")),
        moment.cast(pl.Datetime("us", "UTC")),
        moment.cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(zone),
        pl.Series(texts, dtype=pl.Categorical),
    ]
    served = {tokenizer(field)(value) for value in values}
    assert len(served) == 1
    for column in columns:
        assert set(time_column(column, field)) == served, column


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.none() | st.just(-1) | MOMENTS, max_size=20), st.sampled_from(TYPES))
def test_rows_keep_their_order_and_missing_rows_stay_missing(moments: list[int | None], dtype: pl.DataType) -> None:
    field = Field("x", "context", transform="hour", timezone="Asia/Kolkata", missing=("-1", "nan"))
    read = tokenizer(field)
    integers = pl.Series(moments, dtype=pl.Int64)
    expected = [read(value) for value in moments]
    assert time_column(integers.cast(dtype), field).to_list() == expected
    assert time_column(integers.cast(pl.Float64).fill_null(float("nan")), field).to_list() == expected


def test_dates_and_columns_of_nulls_are_read() -> None:
    weekday = Field("x", "context", transform="weekday")
    assert time_column(pl.Series([datetime(2026, 1, 31).date(), None]), weekday).to_list() == ["6", None]
    assert time_column(pl.Series([None, None], dtype=pl.Boolean), weekday).to_list() == [None, None]
    assert time_column(pl.Series([], dtype=pl.String), weekday).to_list() == []
    before_1970 = pl.Series([datetime(1969, 12, 31, 23, 59, 59, 500_000)])
    assert time_column(before_1970, Field("x", "context", transform="hour")).to_list() == ["23"]


@pytest.mark.parametrize(
    ("column", "reason", "row"),
    [
        (
            pl.Series("t", ["2026-01-31", None, "n/a", "2026-01-31", "x"]),
            'holds "n/a"; expected an ISO 8601 time, or Unix seconds or milliseconds. Add "n/a" to missing',
            2,
        ),
        (pl.Series("t", [1769893200, 0]), 'holds 0; expected an ISO 8601 time.*Add "0" to missing', 1),
        (pl.Series("t", [1769893200.0, float("nan")]), 'holds nan; .*Add "nan" to missing', 1),
        (pl.Series("t", [1.7e9], dtype=pl.Float32), "has the type Float32; expected text, timestamps", None),
        (pl.Series("t", [True]), "has the type Boolean", None),
    ],
)
def test_an_unreadable_timestamp_is_reported_with_its_row(column: pl.Series, reason: str, row: int | None) -> None:
    with pytest.raises(BadValueError, match=reason) as error:
        time_column(column, Field("x", "context", transform="hour"))
    assert (error.value.column, error.value.row) == ("t", row)


def test_a_request_with_the_raw_row_is_encoded_like_the_prepared_row(tmp_path: Path) -> None:
    assert main([write(tmp_path, LOG), "--data", str(tmp_path)]) == 0
    prepared = read_prepared(tmp_path / "prepared")
    lookup = {name: open_vocabulary(prepared.vocabulary, name) for name in ("hour", "weekday", "ad")}
    assert [token for token, _ in lookup["hour"].items()] == ["0", "1"]
    ids, values, _ = prepared.split("train")
    encoder = Encoder(prepared.schema, strict=False)
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"shown_at": "2026-01-30T21:30:00Z"}, {"ad": "a", "price": 1}),
        ({"shown_at": "2026-01-31 01:30:00+03:00"}, {"ad": "b", "price": 10}),
        ({"shown_at": 1769893200000}, {"ad": "a", "price": 100}),
        ({"shown_at": None}, {"ad": "b", "price": 1000}),
    ]
    for row, (context, candidate) in enumerate(rows):
        model_input, unknown = encoder.ids(encoder.tokens(context, [candidate]), lookup)
        assert not unknown
        assert [*model_input.context_ids[0], *model_input.candidate_ids[0]] == ids[row].tolist()
        assert model_input.candidate_values[0].tolist() == values[row].tolist()
    assert prepared.facts.missing["hour"] == prepared.facts.missing["weekday"] == 0.25


def test_an_unreadable_timestamp_in_a_file_is_reported_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = write(tmp_path, LOG.replace("1769893200", "yesterday"))
    assert main([toml, "--data", str(tmp_path)]) == 2
    message = (
        'train.csv:4: column "shown_at" holds "yesterday"; expected an ISO 8601 time, or Unix seconds or milliseconds.'
    )
    assert message in capsys.readouterr().err


def test_an_unknown_time_zone_is_refused_before_the_log_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write(tmp_path, "", TOML.replace("Istanbul", "Istambul")), "--data", str(tmp_path)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "timed.toml" in error
    assert "field \"hour\": timezone 'Europe/Istambul' is unknown" in error


def test_schema_stores_the_source_and_the_time_zone(tmp_path: Path) -> None:
    assert main([write(tmp_path, LOG), "--data", str(tmp_path)]) == 0
    hour = json.loads((tmp_path / "prepared/schema.json").read_text())["fields"][0]
    assert (hour["from"], hour["timezone"], hour["transform"]) == ("shown_at", "Europe/Istanbul", "hour")


def test_numeric_text_is_compared_with_the_markers_as_in_a_request() -> None:
    field = Field("day", "context", transform="day", missing=("-1", "1", "n/a"))
    values = ["-1.0", " -1 ", "-1e0", "1.0", "n/a", "", None, "1769893200"]
    read = tokenizer(field)
    assert time_column(pl.Series("day", values), field).to_list() == [read(value) for value in values]
    for value in ("-2", "nan", "\uff11", "20260131", "202601312100", "20260131210000"):
        with pytest.raises(BadValueError):
            time_column(pl.Series("day", [value]), field)
        with pytest.raises(ValueError, match="must be an ISO 8601 time"):
            read(value)
