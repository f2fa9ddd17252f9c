"""Preparing a log: for any log, the ids and numbers must be the same as in serving."""

import dataclasses
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.encode import Encoder
from contract.schema import Field
from contract.tokens import number_reader, tokenizer
from contract.vocabulary import MISSING, open_vocabulary
from model.cli.prepare import main
from model.data.prepare import reading, writing
from model.data.prepare.columns import number_column, text_column
from model.data.prepare.counting import count_tokens
from model.data.prepare.prepare import prepare, write_prepared
from model.data.prepare.prepared import Prepared, read_prepared
from model.data.prepare.summary import warnings
from model.data.readers.log import FILE, LINE, Log, LogFile
from model.data.synthetic.generate import main as generate
from model.data_config import Data, FieldSpec
from tests.support.examples import examples

GENERATED = Data(reader="generated", folder="generated", prepared="prepared/generated")
FIELDS = (Field("place", "context"), Field("ad", "candidate"), Field("bid", "candidate", "numeric"))
MARKED = (
    Field("place", "context", missing=("a", "1")),
    Field("ad", "candidate", missing=("-1",), transform="log_square"),
    Field("bid", "candidate", "numeric", missing=("-1", "2.5")),
)
MEANS_MISSING = st.lists(st.sampled_from(["-1", "-1.0", "1e0", " 2 ", "2.50", "nan", "n/a"]), min_size=1, max_size=3)

text = st.text(st.one_of(st.sampled_from(" \t\nab"), st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
KINDS: list[tuple[st.SearchStrategy[Any], pl.DataType]] = [
    (st.integers(-(2**63), 2**63 - 1), pl.Int64()),
    (st.integers(-3, 3), pl.Int8()),
    (st.floats(allow_nan=False, allow_infinity=False), pl.Float64()),
    (st.integers(-3, 3).map(float), pl.Float64()),
    (st.floats(allow_nan=False, allow_infinity=False, width=32), pl.Float32()),
    (st.booleans(), pl.Boolean()),
    (text, pl.String()),
    (st.sampled_from([" x", "x", "x ", "", "  ", "1", "1.0", "03349703", "68928e17"]), pl.String()),
    (st.sampled_from(["a", "b"]), pl.Categorical()),
    (st.none(), pl.Null()),
]
COUNTS: list[tuple[st.SearchStrategy[Any], pl.DataType]] = [
    (st.integers(-3, 30), pl.Int64()),
    (st.sampled_from([-1.0, 2.0, 2.1, 2.5]), pl.Float64()),
]
HUGE = (
    st.sampled_from([-1.0, 2.5, 1e300]),
    pl.Float64(),
)  # A numeric field is limited to smaller numbers, because its variance must be finite.
NUMBERS: list[tuple[st.SearchStrategy[Any], pl.DataType]] = [
    (st.floats(-1e9, 1e9), pl.Float64()),
    (st.integers(-(2**53), 2**53), pl.Int64()),
    (st.just(2.5), pl.Float64()),
]


def columns(kinds: Sequence[tuple[st.SearchStrategy[Any], pl.DataType]]) -> st.SearchStrategy[list[pl.Series]]:
    """Generate three columns of one type: for train, valid and test."""

    def of(kind: tuple[st.SearchStrategy[Any], pl.DataType]) -> st.SearchStrategy[list[pl.Series]]:
        column = st.lists(st.none() | kind[0], min_size=8, max_size=8)
        return st.lists(column.map(lambda values: pl.Series(values, dtype=kind[1])), min_size=3, max_size=3)

    return st.sampled_from(kinds).flatmap(of)


def log_of(
    columns: dict[str, list[pl.Series]], fields: tuple[Field, ...] = FIELDS, labels: Sequence[int] = (0, 1) * 4
) -> Log:
    splits = {
        split: pl.DataFrame({"label": labels} | {name: three[i] for name, three in columns.items()})
        for i, split in enumerate(("train", "valid", "test"))
    }
    return Log(fields, "label", *numbered(splits))


def numbered(
    splits: dict[str, pl.DataFrame],
) -> tuple[dict[str, pl.LazyFrame], dict[str, str], tuple[LogFile, ...]]:
    """Return the frames with FILE and LINE, as if each were a parquet file; the path of each split; and the files."""
    frames = {
        split: frame.with_row_index(LINE, 1).with_columns(pl.lit(number, pl.Int32).alias(FILE)).lazy()
        for number, (split, frame) in enumerate(splits.items())
    }
    paths = {split: f"{split}.parquet" for split in splits}
    return frames, paths, tuple(map(LogFile, paths.values()))


def write(folder: Path, log: Log, min_count: int = 1, given: Path | None = None) -> Prepared:
    vocabulary = str(given or "")
    data = Data(reader="frappe", folder="raw", prepared="prepared", min_count=min_count, vocabulary=vocabulary)
    write_prepared(folder / "prepared", log, data, given)
    return read_prepared(folder / "prepared")


def as_sent(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as a client sends them in JSON: a float32 is written as its shortest decimal."""
    sent = frame.with_columns(
        pl.Series(c.name, [None if v is None else float(str(np.float32(v))) for v in c.to_list()], dtype=pl.Float64)
        for c in frame.get_columns()
        if c.dtype == pl.Float32
    )
    return sent.to_dicts()


def assert_served_alike(log: Log, min_count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepared = write(Path(folder), log, min_count)
        lookup = {name: open_vocabulary(prepared.vocabulary, name) for name in ("place", "ad")}
        encoder = Encoder(prepared.schema)
        for split, frame in log.splits.items():
            ids, values, _ = prepared.split(split)
            for row, sent in enumerate(as_sent(frame.drop(FILE, LINE).collect())):
                one, _ = encoder.ids(encoder.tokens(sent, [sent]), lookup)
                assert [one.context_ids[0, 0], one.candidate_ids[0, 0]] == ids[row].tolist()
                assert one.candidate_values.tolist() == [values[row].tolist()]


@settings(max_examples=examples(100), deadline=None)
@given(columns(KINDS), columns(KINDS), columns(NUMBERS), st.integers(1, 3))
def test_prepare_and_serving_give_the_same_ids_and_numbers(
    place: list[pl.Series], ad: list[pl.Series], bid: list[pl.Series], min_count: int
) -> None:
    assert_served_alike(log_of({"place": place, "ad": ad, "bid": bid}), min_count)


@settings(max_examples=examples(50), deadline=None)
@given(columns(KINDS), columns([*COUNTS, HUGE]), columns([*NUMBERS, *COUNTS]), st.integers(1, 2), MEANS_MISSING)
def test_prepare_and_serving_agree_on_buckets_and_missing_values(
    place: list[pl.Series], ad: list[pl.Series], bid: list[pl.Series], min_count: int, missing: list[str]
) -> None:
    fields = tuple(msgspec.structs.replace(field, missing=(*(field.missing or ()), *missing)) for field in MARKED)
    assert_served_alike(log_of({"place": place, "ad": ad, "bid": bid}, fields), min_count)


@given(st.lists(st.sampled_from(["-1", "-1.0", "1e0", "1.00", "2", " 3"]), min_size=1, unique=True), MEANS_MISSING)
def test_text_is_missing_if_the_same_number_is(written: list[str], missing: list[str]) -> None:
    bid = Field("bid", "candidate", "numeric", missing=tuple(missing))
    read = number_reader(bid)
    absent = [math.isnan(read(float(text))) for text in written]
    assert np.isnan(number_column(pl.Series(written), bid)).tolist() == absent
    bucket = msgspec.structs.replace(bid, kind="categorical", transform="log_square")
    vocabulary, ids = count_tokens(pl.Series(written), np.ones(len(written) + 1, np.int64), bucket, 1)
    tokens = [tokenizer(bucket)(float(text)) for text in written]
    assert ids[1:].tolist() == [MISSING if one is None else vocabulary(one) for one in tokens]
    assert [one is None for one in tokens] == absent


@pytest.mark.parametrize("other", ["2", " 2", "", "n/a", "nan"])
def test_a_missing_marker_is_recognized_whatever_else_the_batch_contains(other: str) -> None:
    """A parser could read "nan" as a number."""
    field = Field("bid", "candidate", "numeric", missing=("nan", "n/a", "1e0"))
    found = number_column(pl.Series(["nan", "1", "1.00", "3", other]), field)
    assert np.isnan(found[:4]).tolist() == [True, True, True, False]
    bucket = msgspec.structs.replace(field, kind="categorical", transform="log_square")
    _, ids = count_tokens(pl.Series(["nan", "1", "1.00", "3", other]), np.ones(6, np.int64), bucket, 1)
    assert ids[:4].tolist() == [MISSING] * 4
    assert ids[4] != MISSING


@pytest.mark.parametrize("batch", [3, 1000])
def test_the_batch_size_does_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """There are more rows than fit in one batch, and later batches repeat values of earlier ones."""
    monkeypatch.setattr(reading, "BATCH_ROWS", batch)
    monkeypatch.setattr(writing, "CHUNK_ROWS", batch)
    rows = [f"v{n * n % 17}" for n in range(50)]
    frame = pl.DataFrame({"label": [0, 1] * 25, "place": rows, "ad": rows[::-1], "bid": range(50)})
    prepared = write(tmp_path, Log(FIELDS, "label", *numbered(dict.fromkeys(("train", "valid", "test"), frame))))
    ranked = sorted(set(rows), key=lambda value: (-rows.count(value), value))
    assert prepared.split("train")[0].tolist() == [
        [ranked.index(a) + 2, ranked.index(b) + 2] for a, b in zip(rows, rows[::-1], strict=True)
    ]
    numbers = np.arange(50.0)
    expected = ((numbers - numbers.mean()) / numbers.std()).astype(np.float32)
    assert prepared.split("test")[1][:, 0].tolist() == expected.tolist()


def test_a_useless_field_of_a_published_log_is_only_a_warning(tmp_path: Path) -> None:
    same = {"place": [pl.Series(["p"] * 8)] * 3, "ad": [pl.Series(range(8))] * 3, "bid": [pl.Series([1.0] * 8)] * 3}
    one, none, number = warnings(write(tmp_path, log_of(same), min_count=2))
    assert 'column "place" holds "p" in every row of train' in one
    assert 'column "ad" has no tokens: no value occurs min_count times' in none
    assert 'column "bid" holds 1 in every row of train that has a number, so no weight can be trained on it' in number


def test_numbers_get_their_mean_and_range_from_train_and_are_clipped_to_the_range(tmp_path: Path) -> None:
    bids = [pl.Series(numbers * 2) for numbers in ([1.0, 3.0, None, 2.0], [2.0] * 4, [3.0, 1e9, -5.0, None])]
    ads, places = [pl.Series(["a", "b"] * 4)] * 3, [pl.Series(["p", "q"] * 4)] * 3
    prepared = write(tmp_path, log_of({"place": places, "ad": ads, "bid": bids}))
    (bid,) = prepared.schema.select("numeric")
    assert (bid.mean, bid.seen) == (2.0, (1.0, 3.0))
    nearest = np.array([3.0, 3.0, 1.0, 2.0] * 2)
    np.testing.assert_allclose(prepared.split("test")[1][:, 0], (nearest - 2.0) / bid.std, rtol=1e-6)


def test_a_numeric_field_without_numbers_is_a_warning(tmp_path: Path) -> None:
    places, ads = [pl.Series(["p", "q"] * 4)] * 3, [pl.Series(["a", "b"] * 4)] * 3
    nothing = [pl.Series([None] * 8, dtype=pl.Float64)] * 3
    (said,) = warnings(write(tmp_path, log_of({"place": places, "ad": ads, "bid": nothing})))
    assert said == 'column "bid" is missing in every row of train. Remove the field.'


def test_a_vocabulary_of_another_log_is_a_warning(tmp_path: Path) -> None:
    columns = {"place": [pl.Series(["p", "q"] * 4)] * 3, "bid": [pl.Series([1.0, 2.0] * 4)] * 3}
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", log_of(columns | {"ad": [pl.Series(["a", "b"] * 4)] * 3}))
    log = log_of(columns | {"ad": [pl.Series(["b", *"1234567"])] * 3})
    assert warnings(write(tmp_path, log)) == []
    (said,) = warnings(write(tmp_path, log, given=other.vocabulary))
    assert said.startswith('column "ad": 87.50% of the values in test are not in the vocabulary. Check')


def test_new_values_in_test_are_never_called_another_log(tmp_path: Path) -> None:
    columns = {"place": [pl.Series(["p", "q"] * 4)] * 3, "bid": [pl.Series([1.0, 2.0] * 4)] * 3}
    ads = [pl.Series(["a", "b"] * 4)] * 2 + [pl.Series([*"12345678"])]
    (said,) = warnings(write(tmp_path, log_of(columns | {"ad": ads})))
    assert said.startswith('column "ad": 100.00% of the rows of test have a value that does not occur in train. The')
    assert warnings(write(tmp_path, log_of(columns | {"ad": ads}), min_count=2)) == []  # rare values are expected


def test_a_min_count_that_leaves_almost_no_values_is_a_warning(tmp_path: Path) -> None:
    columns = {"place": [pl.Series(["p", "q"] * 10)] * 3, "bid": [pl.Series([1.0, 2.0] * 10)] * 3}
    log = log_of(columns | {"ad": [pl.Series([*"aabcdefghijklmnopqrs"])] * 3}, labels=[0, 1] * 10)
    rare = msgspec.structs.replace(GENERATED, fields=(FieldSpec(name="ad", min_count=2),))
    write_prepared(tmp_path / "prepared", log, rare)
    (said,) = warnings(read_prepared(tmp_path / "prepared"))
    assert said == (
        'column "ad": 90.00% of the rows of train have a value that occurs fewer than 2 times. Lower min_count or '
        "remove the field."
    )


def test_the_warnings_about_values_are_given_for_the_fields_of_a_prepared_log(tmp_path: Path) -> None:
    rows = 400
    labels = [0, 1] * (rows // 2)
    columns = {
        "place": pl.Series([r"\N" if n % 3 else f"p{n % 5}" for n in range(rows)]),
        "ad": pl.Series([f"{n % 7}.0" for n in range(rows)]),
        "bid": pl.Series([0.5 + label for label in labels]),
    }
    log = log_of({name: [column] * 3 for name, column in columns.items()}, labels=labels)
    marker, decimals, leak = warnings(write(tmp_path, log))
    assert marker.startswith('column "place" has values that look missing: "\\\\N" in 266 rows. Add them to missing')
    assert 'column "ad" has ids that were written as decimals: "0.0" in 58 rows.' in decimals
    assert leak.startswith(
        'column "bid" alone predicts the label almost perfectly, with an AUC of 1.00000; for example, 1.5 has'
    )


def test_an_id_of_the_row_is_a_warning(tmp_path: Path) -> None:
    rows = 200
    columns: dict[str, Sequence[Any]] = {
        "place": ["p", "q"] * 100,
        "ad": [f"r{n}" for n in range(rows)],
        "bid": [1.0, 2.0] * 100,
    }
    series = {name: [pl.Series(values)] * 3 for name, values in columns.items()}
    (said, *others) = warnings(write(tmp_path, log_of(series, labels=[0, 1, 1, 0] * 50)))
    assert said.startswith('column "ad" has 200 distinct values in 200 rows')
    assert others == []


def test_a_missing_vocabulary_is_an_error_before_the_log_is_read(tmp_path: Path) -> None:
    data = msgspec.structs.replace(GENERATED, vocabulary="nowhere")
    with pytest.raises(ValueError, match=r'nowhere: no such folder\. vocabulary = "nowhere" is relative'):
        prepare(tmp_path, data)


def test_a_log_that_is_deleted_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    columns = {"place": pl.Series(["p", "q"] * 4), "ad": pl.Series(["a", "b"] * 4), "bid": pl.Series([1.0] * 8)}
    log = log_of({name: [values] * 3 for name, values in columns.items()})
    gone = tmp_path / "gone.parquet"
    log.splits["train"].collect().write_parquet(gone)
    frames = dict(log.splits) | {"train": pl.scan_parquet(gone)}
    frames["train"].collect_schema()
    gone.unlink()
    with pytest.raises(ValueError, match=r"^train\.parquet: cannot be read: .*No such file"):
        write(tmp_path, dataclasses.replace(log, splits=frames))


FULL = """
import resource, sys
from pathlib import Path
from model.cli.prepare import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["--config", sys.argv[2], "--data", str(Path(sys.argv[2]).parent)]))
"""


@pytest.mark.parametrize("most_bytes", [2000, 20_000])
def test_a_full_disk_leaves_the_old_log_and_no_partial_output(tmp_path: Path, most_bytes: int) -> None:
    assert generate(["--data", str(tmp_path), "--requests", "1500"]) == 0
    config = tmp_path / "data.toml"
    config.write_text('[data]\nreader = "generated"\nfolder = "generated"\nprepared = "out/log"\n')
    assert main(["--config", str(config), "--data", str(tmp_path)]) == 0
    before = (tmp_path / "out" / "log" / "train.ids.npy").read_bytes()
    run = [sys.executable, "-c", FULL, str(most_bytes), str(config)]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert f"{tmp_path}/out/log: cannot be written: File too large. The partial output was removed." in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log"]
    assert (tmp_path / "out" / "log" / "train.ids.npy").read_bytes() == before


@pytest.fixture
def small(tmp_path: Path) -> Prepared:
    places: list[list[str | None]] = [
        ["x", " x ", "y", None, "z", "z", "", "y"],
        ["x", "new", None, *"xxxxx"],
        ["x", *"abcdefg"],
    ]
    bids: list[list[float | None]] = [[1.0, 3.0, None, None, 1.0, 3.0, 1.0, 3.0], [2.0] * 8, [None] * 8]
    ads = [[7] * 8, [7] * 8, [8] * 8]
    return write(
        tmp_path,
        log_of(
            {
                "place": [pl.Series(p) for p in places],
                "ad": [pl.Series(a) for a in ads],
                "bid": [pl.Series(b, dtype=pl.Float64) for b in bids],
            }
        ),
    )


def test_tokens_are_ordered_by_frequency_and_then_alphabetically(small: Prepared) -> None:
    vocabulary = open_vocabulary(small.vocabulary, "place")
    assert sorted(vocabulary.items(), key=lambda item: item[1]) == [("x", 2), ("y", 3), ("z", 4)]
    assert small.vocabulary_sizes == (5, 3)


def test_missing_has_id_1_and_a_token_that_is_not_in_train_has_id_0(small: Prepared) -> None:
    assert small.split("train")[0][:, 0].tolist() == [2, 2, 3, 1, 4, 4, 1, 3]
    assert small.split("valid")[0][:3].tolist() == [[2, 2], [0, 2], [1, 2]]
    assert small.split("test")[0][:, 1].tolist() == [0] * 8


def test_numbers_are_normalized_with_the_statistics_of_train_and_missing_ones_become_the_mean(small: Prepared) -> None:
    bid = small.schema.select("numeric")[0]
    assert (bid.mean, bid.std) == (2.0, 1.0)
    assert small.split("train")[1][:4, 0].tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert small.split("test")[1].tolist() == [[0.0]] * 8


def test_arrays_have_the_types_that_training_reads(small: Prepared) -> None:
    ids, values, labels = small.split("train")
    assert [str(array.dtype) for array in (ids, values, labels)] == ["int32", "float32", "float32"]
    assert (ids.shape, values.shape, labels.shape) == ((8, 2), (8, 1), (8,))
    assert labels.tolist() == [0.0, 1.0] * 4


def test_facts_about_the_log_are_written(small: Prepared) -> None:
    assert small.facts.splits["test"].click_rate == 0.5
    assert small.facts.missing == {"place": 0.25, "ad": 0.0, "bid": 0.25}
    assert small.facts.data.negative_rate == 1.0


def test_a_rare_token_is_unknown_in_train_too(tmp_path: Path) -> None:
    places = [pl.Series(["a"] * 5 + ["b"] * 2 + ["c"])] * 3
    log = log_of({"place": places, "ad": [pl.Series([1] * 8)] * 3, "bid": [pl.Series([1.0] * 8)] * 3})
    assert write(tmp_path, log, min_count=3).split("train")[0][:, 0].tolist() == [2] * 5 + [0] * 3


@pytest.mark.parametrize(
    ("field", "column", "message"),
    [
        (
            "bid",
            pl.Series([1.0, float("nan")] * 4),
            r'^train\.parquet, row 2: column "bid" holds nan; expected a finite number\. Add "nan" to missing',
        ),
        ("bid", pl.Series([float("inf")] + [1.0] * 7), 'row 1: column "bid" holds inf; expected a finite number'),
        ("bid", pl.Series([1e308, -1e308] * 4), "'bid': mean .* must be finite"),
        (
            "bid",
            pl.Series(["1", " 2", "", "x"] * 2),
            r'row 4: column "bid" holds "x"; expected a number\. Add "x" to missing',
        ),
        ("bid", pl.Series([True] * 8), '"bid" has the type Boolean; expected numbers'),
        (
            "ad",
            pl.Series([None] * 7 + [float("nan")]),
            r'row 8: column "ad" holds nan; expected a finite number\. Add "nan" to missing',
        ),
        ("ad", pl.Series([[1]] * 8), r'"ad" has the type List\(Int64\); expected strings'),
        ("ad", pl.Series(["a"] * 7 + ["a\0b"]), r'row 8: column "ad" holds "a\\u0000b"; a token cannot contain NUL'),
    ],
)
def test_a_column_that_serving_would_reject_is_rejected(
    tmp_path: Path, field: str, column: pl.Series, message: str
) -> None:
    good = {"place": pl.Series(["p"] * 8), "ad": pl.Series([1] * 8), "bid": pl.Series([1.0] * 8)}
    log = log_of({name: [column if name == field else values] * 3 for name, values in good.items()})
    with pytest.raises(ValueError, match=message):
        write(tmp_path, log)
    assert not any(tmp_path.iterdir())


def test_the_generated_log_is_prepared_completely(tmp_path: Path) -> None:
    assert generate(["--data", str(tmp_path), "--requests", "300"]) == 0
    prepared = prepare(tmp_path, GENERATED)
    ids, values, labels = prepared.split("train")
    assert ids.shape == (1200, len(prepared.schema.select("categorical")))
    assert values.shape == (1200, 2)
    assert (ids.max(0) < prepared.vocabulary_sizes).all()
    raw = pl.read_parquet(tmp_path / "generated" / "test.parquet")
    assert prepared.column("test", "true_ctr").tolist() == raw["true_ctr"].to_list()
    assert prepared.column("test", "request").dtype == np.int64
    assert prepared.facts.splits["train"].click_rate == pytest.approx(labels.mean())
    prepare(tmp_path, GENERATED)  # Preparing again replaces the folder.


def test_a_missing_extra_column_is_an_error(small: Prepared) -> None:
    with pytest.raises(ValueError, match=r"test\.true_ctr\.npy"):
        small.column("test", "true_ctr")


def test_a_folder_that_ctr_prepare_did_not_write_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Create it with: ctr-prepare"):
        read_prepared(tmp_path)


def test_a_prepared_folder_with_a_missing_file_is_rejected(small: Prepared) -> None:
    (small.vocabulary / "ad.ids.npy").unlink()
    with pytest.raises(ValueError, match=r"vocabulary of field 'ad'.*Run ctr-prepare again"):
        read_prepared(small.folder)


def test_the_command_prints_a_line_for_each_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(["--data", str(tmp_path), "--requests", "200"]) == 0
    experiment = tmp_path / "e.toml"
    experiment.write_text(
        'name = "e"\n[data]\nreader = "generated"\nfolder = "generated"\nprepared = "prepared/generated"\n'
    )
    assert main([str(experiment), "--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "session_depth" in out
    assert "advertiser" in out


def test_a_misspelled_training_key_is_an_error_before_the_log_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tmp_path / "e.toml"
    data = '[data]\nreader = "generated"\nfolder = "generated"\nprepared = "prepared/generated"\n'
    experiment.write_text(f'name = "e"\n{data}[training]\nembedingl2 = 0.1\n')
    assert main([str(experiment), "--data", str(tmp_path)]) == 2
    assert 'no key "embedingl2"' in capsys.readouterr().err


def test_the_command_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.toml"), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none.toml: no such experiment file" in error


def test_the_token_of_a_float32_is_its_shortest_decimal() -> None:
    column = pl.Series([0.1, 0.2, 16777216.0, 3.0], dtype=pl.Float32)
    assert text_column(column).to_list() == ["0.1", "0.2", "16777216", "3"]
