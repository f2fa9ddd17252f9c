"""[data] reads the joined log, with the tokens and numbers that the service derives from the same values."""

import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.encode import Encoder
from contract.vocabulary import open_vocabulary
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import Prepared
from model.data_config import Data, SplitByTime
from model.loop.join import join
from model.loop.output import Settings
from model.loop.table import value_text
from tests.support.loop_logs import START_S, event, request, score_id, write_logs

HOUR = 3600
HOURS = 6
UNTIL_MS = int((START_S + 100 * HOUR) * 1000)
TOML = """
reader = "table"
folder = "joined"
prepared = "prepared"
files = ["hours/*.parquet"]
split = { by = "time", valid = "1h", test = "1h" }
time = "time"
unit = "unit"
request = "score_id"
weight = "weight"
label = "click"
context = ["place", "user"]
candidate = ["ad", "bid", "slot", "new"]
numeric = ["bid"]
missing = ["n/a"]

[[fields]]
name = "hour"
side = "context"
from = "shown_at"
transform = "hour"

[[fields]]
name = "price"
side = "candidate"
transform = "log_square"
missing = ["-1"]
"""


def data() -> Data:
    return msgspec.convert(tomllib.loads(TOML), Data)


def write_joined(root: Path, rows: Sequence[tuple[int, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Join one impression for each row: the hour, the context and the candidate. Every second one is clicked."""
    lines, events = [], []
    for number, (hour, context, candidate) in enumerate(rows):
        at = hour * HOUR + number
        lines.append(request(number, at, [candidate], context=context, unit=f"u{number % 3}"))
        events.append(event("impression", score_id(number, at), at))
        if number % 2:
            events.append(event("click", score_id(number, at), at + 1))
    paths = write_logs(root, lines, events)
    join(paths, root / "joined", Settings(window_s=60, lateness_s=0), UNTIL_MS)


def check_values(prepared: Prepared, rows: Sequence[tuple[int, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Check that the prepared log has the ids and numbers that a service encodes."""
    fields = prepared.schema.select("categorical")
    lookup = {field.name: open_vocabulary(prepared.vocabulary, field.name) for field in fields}
    encoded = Encoder(prepared.schema).rows([row[1] for row in rows], [row[2] for row in rows], lookup)
    ids = np.hstack([encoded.context_ids, encoded.candidate_ids])
    order = [*prepared.schema.select("categorical", "context"), *prepared.schema.select("categorical", "candidate")]
    ids = ids[:, [order.index(field) for field in fields]]
    splits = [prepared.split(name) for name in ("train", "valid", "test")]
    np.testing.assert_array_equal(np.vstack([split[0] for split in splits]), ids)
    np.testing.assert_array_equal(np.vstack([split[1] for split in splits]), encoded.candidate_values)
    np.testing.assert_array_equal(np.hstack([split[2] for split in splits]), np.arange(len(rows)) % 2)


NAMES = ("ad", "bid", "slot", "new")
CATEGORIES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-3, 3).map(float),
    st.sampled_from(["", " a ", "a", "1", "1.0", "001", "n/a", "true", "1e5", "[1]"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4),
)
NUMBERS = st.one_of(st.none(), st.just("n/a"), st.integers(-9, 2**60), st.floats(-1e300, 1e300, allow_nan=False))
PRICES = st.one_of(st.none(), st.sampled_from([-1, -1.0, 3, 3.5, 1e9, "n/a"]))
MOMENTS = st.one_of(st.none(), st.sampled_from([1769893200, 1769893200000, 1769893200.5, "1769893200"]))
CONTEXTS = st.fixed_dictionaries(
    {"place": CATEGORIES, "shown_at": MOMENTS | st.just("2026-01-31T21:30:00+03:00")},
    optional={"user": CATEGORIES, "unknown": st.one_of(CATEGORIES, st.just({"list": [1, None]}))},
)
CANDIDATES = st.fixed_dictionaries(
    {"ad": CATEGORIES, "bid": NUMBERS, "price": PRICES}, optional={"slot": st.just("top"), "new": CATEGORIES}
)


@settings(max_examples=8)
@given(st.lists(st.tuples(CONTEXTS, CANDIDATES), min_size=2 * HOURS, max_size=2 * HOURS))
def test_a_prepared_joined_log_has_the_values_of_the_service(
    drawn: list[tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    """Hours differ in their columns and in the types of the values."""
    rows = [(number // 2, context, candidate) for number, (context, candidate) in enumerate(drawn)]
    # ctr-prepare refuses a field that is absent or constant in the training set.
    for number, moment in ((2, 1769893200), (3, 1769896800)):
        context, candidate = {"place": moment, "shown_at": moment, "user": moment}, dict.fromkeys(NAMES, number)
        rows[number] = (1, context, {**candidate, "price": 10**number})
    with tempfile.TemporaryDirectory() as folder:
        write_joined(Path(folder), rows)
        check_values(prepare(Path(folder), data()), rows)


def test_hours_may_differ_in_the_types_and_names_of_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bids: list[Any] = [None, None, 1, 2, 2.5, 0.1, 10**18, 7, 3, 4, 5.0, 6]
    ads: list[Any] = ["x", "y", 1, 2, 1.0, 2.5, "1", True, None, None, "x", 2]
    rows = []
    for number, (bid, ad) in enumerate(zip(bids, ads, strict=True)):
        later = {"new": f"n{number}", "slot": number} if number >= 6 else {}
        context = {"place": f"p{number}", "user": number, "shown_at": 1769893200 + 1800 * number}
        rows.append((number // 2, context, {"ad": ad, "bid": bid, "price": number, **later}))
    write_joined(tmp_path, rows)
    prepared = prepare(tmp_path, data())
    check_values(prepared, rows)
    warning = 'warning: column "new" is not in 3 of 6 joined files, such as '
    assert warning in capsys.readouterr().err
    units = np.hstack([prepared.units(name) for name in ("train", "valid", "test")])  # type: ignore[misc]
    assert len(set(units)) == 3
    assert len(set(prepared.requests("train"))) == 8  # type: ignore[arg-type]


def test_values_that_ctr_prepare_cannot_read_do_not_stop_it() -> None:
    assert value_text("a\0b") == "a\ufffdb"
    assert value_text([1, {"b": None, "a": 1}]) == '[1,{"a":1,"b":null}]'


def test_a_column_that_no_hour_has_is_an_error(tmp_path: Path) -> None:
    rows = [(hour // 2, {"place": 1, "user": 1, "shown_at": None}, {"ad": 1}) for hour in range(2 * HOURS)]
    write_joined(tmp_path, rows)
    with pytest.raises(ValueError, match=r'2026-11-30T20\.parquet: no column "bid"'):
        prepare(tmp_path, data())


def test_other_parquet_files_still_need_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "joined" / "hours").mkdir(parents=True)
    frame = pl.DataFrame({"time": ["2026-01-01"], "click": [0], "a": ["x"], "b": ["y"]})
    frame.write_parquet(tmp_path / "joined" / "hours" / "1.parquet")
    frame.drop("b").write_parquet(tmp_path / "joined" / "hours" / "2.parquet")
    other = Data(
        reader="table",
        folder="joined",
        prepared="prepared",
        files="hours/*.parquet",
        split=SplitByTime(valid="1h", test="1h"),
        time="time",
        label="click",
        context=("a",),
        candidate=("b",),
    )
    with pytest.raises(ValueError, match=r'2\.parquet: no column "b", which .*1\.parquet has'):
        prepare(tmp_path, other)
