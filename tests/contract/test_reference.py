"""A reference is checked when it is read, and errors name the file."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.reference import (
    MAX_BYTES,
    REFERENCE,
    Bins,
    CategoricalReference,
    NumericReference,
    Reference,
    bin_numbers,
    parse_reference,
    read_reference,
)
from contract.schema import FeatureSchema, Field

SCHEMA = FeatureSchema((Field("user", "context"), Field("ad", "candidate"), Field("bid", "candidate", "numeric")))
QUARTERS = Bins((-1.0, 0.0, 1.0), (0.25, 0.25, 0.25, 0.25))
VALID = Reference(
    rows=1000,
    predicted=Bins((0.01, 0.05), (0.5, 0.25, 0.25)),
    numeric={"bid": NumericReference(QUARTERS, 0.2)},
    categorical={"user": CategoricalReference(0.1, 0.05), "ad": CategoricalReference(0.0, 0.0)},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / REFERENCE).write_bytes(msgspec.json.encode(VALID))
    assert read_reference(tmp_path, SCHEMA) == VALID
    assert VALID.field_shares()["bid"] == {"0": 0.2, "1": 0.2, "2": 0.2, "3": 0.2, "missing": 0.2}
    assert VALID.field_shares()["user"] == pytest.approx({"known": 0.85, "unknown": 0.1, "missing": 0.05})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"rows": 0}, "0 rows"),
        ({"predicted": Bins((0.5,), (1.0,))}, "the probabilities: 1 edges and 1 shares"),
        ({"predicted": Bins(tuple(range(10)), (0.0,) * 10 + (1.0,))}, "at most 10"),
        ({"predicted": Bins((0.5, 0.5), (0.5, 0.25, 0.25))}, "not finite, ascending"),
        ({"predicted": Bins((0.5,), (0.5, 0.6))}, "sum 1"),
        ({"predicted": Bins((0.5,), (1.5, -0.5))}, "between 0 and 1"),
        ({"numeric": {}}, "numeric field 'bid'"),
        ({"numeric": {"bid": NumericReference(Bins((1.0,), (0.9, 0.2)), 0.0)}}, "field 'bid'"),
        ({"numeric": {"bid": NumericReference(QUARTERS, 1.2)}}, "field 'bid'"),
        ({"categorical": {**VALID.categorical, "slot": CategoricalReference(0, 0)}}, "categorical field 'slot'"),
        ({"categorical": {**VALID.categorical, "user": CategoricalReference(0.7, 0.7)}}, "field 'user'"),
    ],
)
def test_an_inconsistent_reference_is_refused(changes: dict[str, object], message: str) -> None:
    raw = msgspec.json.encode(msgspec.structs.replace(VALID, **changes))
    with pytest.raises(ValueError, match=message) as raised:
        parse_reference(raw, SCHEMA)
    assert REFERENCE in str(raised.value)


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b'{"rows":1}', b"[" * 100_000, b" " * (MAX_BYTES + 1)])
def test_a_file_that_is_not_a_reference_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / REFERENCE).write_bytes(raw)
    with pytest.raises(ValueError, match=REFERENCE):
        read_reference(tmp_path, SCHEMA)


def test_numbers_that_are_not_finite_are_refused() -> None:
    raw = msgspec.json.encode(VALID).replace(b"-1.0", b"-1e999")
    with pytest.raises(ValueError, match=REFERENCE):
        parse_reference(raw, SCHEMA)


@given(st.lists(st.floats(-10, 10), max_size=20), st.lists(st.floats(-10, 10), max_size=9, unique=True).map(sorted))
def test_a_bin_holds_the_numbers_up_to_its_edge(numbers: list[float], edges: list[float]) -> None:
    expected = [sum(edge < number for edge in edges) for number in numbers]
    assert bin_numbers(edges, np.array(numbers)).tolist() == expected
