"""The setting missing_number: what a prepared log contains for a missing number, and that the server agrees."""

import math
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest

from contract.encode import Encoder
from contract.vocabulary import open_vocabulary
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import LOG, Prepared
from model.data.readers.log import SPLITS
from model.data_config import FieldSpec
from model.experiments.trial import load_split, open_log
from tests.support.runs import DATA as GENERATED
from tests.support.runs import NUMBERS

CSV = "click,place,ad,depth,bid\n1,a,x,3,1\n0,b,y,5,\n1,a,y,3,3\n0,b,x,5,-1\n"
DATA = msgspec.structs.replace(NUMBERS, fields=(FieldSpec(name="bid", missing=("-1",)),))


def prepared(folder: Path, missing_number: Literal["vector", "mean"] | None = None) -> Prepared:
    for split in SPLITS:
        (folder / f"{split}.csv").write_text(CSV)
    return prepare(folder, msgspec.structs.replace(DATA, missing_number=missing_number))


@pytest.mark.parametrize("missing_number", [None, "vector"])
def test_a_missing_number_is_nan_and_every_numeric_field_has_a_vector(
    tmp_path: Path, missing_number: Literal["vector"] | None
) -> None:
    """The field "depth" is never missing in train, but may be missing in a request."""
    log = prepared(tmp_path, missing_number)
    assert {f.name for f in log.schema.fields if f.missing_vector is True} == {"depth", "bid"}
    np.testing.assert_array_equal(log.split("train")[1], [[-1, -1], [1, math.nan], [-1, 1], [1, math.nan]])
    assert log.facts.missing == {"place": 0, "depth": 0, "ad": 0, "bid": 0.5}
    assert load_split(log, "train").missing_vectors == [True, True]


def as_in_08(log: Prepared) -> None:
    """Remove the keys that version 0.8 did not store."""
    stored = msgspec.json.decode((log.folder / LOG).read_bytes())
    for key in ("clip_quantile", "missing_number"):
        del stored["data"][key]
    (log.folder / LOG).write_bytes(msgspec.json.encode(stored))


def test_a_log_of_0_8_matches_the_experiment_that_keeps_its_numbers(tmp_path: Path) -> None:
    """A log from 0.8 has neither clipped numbers nor vectors, so it does not match the defaults of version 0.9."""
    old = msgspec.structs.replace(DATA, clip_quantile=0.0, missing_number="mean")
    as_in_08(prepared(tmp_path, "mean"))
    assert open_log(old, tmp_path).facts.rows["train"] == 4
    message = (
        r"prepared with a different \[data\] section: clip_quantile was 0.0 and is now 0.001\. Run ctr-prepare again"
    )
    with pytest.raises(ValueError, match=message):
        open_log(DATA, tmp_path)
    message = r'missing_number was "mean" and is now "vector"\. Run ctr-prepare again, or change missing_number back'
    with pytest.raises(ValueError, match=message):
        open_log(msgspec.structs.replace(old, missing_number=None), tmp_path)


def test_a_log_of_0_8_without_numbers_matches_its_experiment(tmp_path: Path) -> None:
    data = msgspec.structs.replace(DATA, context=("place",), candidate=("ad",), numeric=(), fields=())
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text(CSV)
    as_in_08(prepare(tmp_path, data))
    assert open_log(data, tmp_path).facts.rows["train"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_count": 2}, r"min_count was 1 and is now 2"),
        ({"weight": "bid"}, r'weight was "" and is now "bid"'),
        ({"quote": "'"}, r"""quote was not set and is now "'\""""),
        ({"fields": (FieldSpec(name="bid", missing=("-2",)),)}, r'fields\.bid was .*"-1".* and is now .*"-2"'),
        (
            {"fields": (*DATA.fields, FieldSpec(name="ad", min_count=2))},
            r'fields was \["bid"\] and is now \["bid", "ad"',
        ),
    ],
)
def test_a_log_of_another_section_is_an_error_that_names_the_key(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    prepared(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_log(msgspec.structs.replace(DATA, **change), tmp_path)


def test_with_the_mean_a_missing_number_is_0_and_the_schema_has_no_new_key(tmp_path: Path) -> None:
    log = prepared(tmp_path, "mean")
    assert log.split("train")[1].tolist() == [[-1, -1], [1, 0], [-1, 1], [1, 0]]
    assert b"missing_vector" not in (log.folder / "schema.json").read_bytes()
    assert load_split(log, "train").missing_vectors == [False, False]


def test_readers_of_published_logs_use_the_mean_unless_the_experiment_says_otherwise() -> None:
    assert not GENERATED.has_missing_vector
    assert msgspec.structs.replace(GENERATED, missing_number="vector").has_missing_vector


@pytest.mark.parametrize("missing_number", ["vector", "mean"])
def test_the_server_reads_the_same_numbers(tmp_path: Path, missing_number: Literal["vector", "mean"]) -> None:
    log = prepared(tmp_path, missing_number)
    encoder = Encoder(log.schema)
    lookup = {name: open_vocabulary(log.vocabulary, name) for name in ("place", "ad")}
    values = log.split("train")[1]
    for row, (depth, bid) in enumerate([(3, 1), (5, None), (3, 3), (5, -1)]):
        served, _ = encoder.ids(encoder.tokens({"depth": depth}, [{"bid": bid}]), lookup)
        np.testing.assert_array_equal([served.context_values[0, 0], served.candidate_values[0, 0]], values[row])
