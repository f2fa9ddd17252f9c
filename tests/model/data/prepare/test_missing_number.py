"""The setting missing_number: what a prepared log contains for a missing number, and that the server agrees."""

import math
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest

from contract.encode import Encoder
from contract.vocabulary import open_vocabulary
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import Prepared
from model.data.readers.log import SPLITS
from model.data_config import Data, FieldSpec
from model.experiments.trial import load_split
from tests.support.runs import DATA as GENERATED

CSV = "click,place,ad,depth,bid\n1,a,x,3,1\n0,b,y,5,\n1,a,y,3,3\n0,b,x,5,-1\n"
DATA = Data(
    reader="table",
    folder=".",
    prepared="prepared",
    train="train.csv",
    valid="valid.csv",
    test="test.csv",
    label="click",
    context=("place", "depth"),
    candidate=("ad", "bid"),
    numeric=("depth", "bid"),
    fields=(FieldSpec(name="bid", missing=("-1",)),),
)


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
