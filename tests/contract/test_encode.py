"""Encoding: a request becomes the model's input, and an invalid value is reported with its JSON path."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.encode import Encoder
from contract.reader import BadFeature
from contract.schema import FeatureSchema, Field
from contract.vocabulary import build_vocabulary

SCHEMA = FeatureSchema(
    (
        Field("user", "context"),
        Field("hour", "context"),
        Field("ad", "candidate"),
        Field("bid", "candidate", "numeric", mean=2.0, std=0.5),
    )
)
LOOKUP = {
    "user": build_vocabulary(["u1", "u2"]),
    "hour": build_vocabulary(["7", "8"]),
    "ad": build_vocabulary(["4082", "ad-1"]),
}
CONTEXT = {"user": "u2", "hour": 7}


def test_ids_are_in_schema_order_and_numbers_are_normalized() -> None:
    encoder = Encoder(SCHEMA)
    tokens = encoder.tokens({"hour": 8.0, "user": " u1 "}, [{"ad": 4082, "bid": 3}, {"bid": 1.5, "ad": "ad-1"}])
    model_input, unknown = encoder.ids(tokens, LOOKUP)
    assert model_input.context_ids.tolist() == [[2, 3]]
    assert model_input.candidate_ids.tolist() == [[2], [3]]
    assert model_input.candidate_values.tolist() == [[2.0], [-1.0]]
    assert model_input.context_values.shape == (1, 0)
    assert str(model_input.context_ids.dtype) == "int64"
    assert not unknown


def test_absent_null_and_blank_values_are_missing_and_counted() -> None:
    encoder = Encoder(SCHEMA)
    tokens = encoder.tokens({"user": None}, [{"ad": ""}, {"ad": "ad-1", "bid": None}, {"bid": 2}])
    model_input, _ = encoder.ids(tokens, LOOKUP)
    assert tokens.missing == {"user": 1, "hour": 1, "ad": 2, "bid": 2}
    assert model_input.context_ids.tolist() == [[1, 1]]
    assert model_input.candidate_ids.tolist() == [[1], [3], [1]]
    assert model_input.candidate_values.tolist() == [[0.0], [0.0], [0.0]]


def test_numbers_outside_the_training_range_are_counted_by_field() -> None:
    bid = Field("bid", "candidate", "numeric", mean=2.0, std=0.5, seen=(1.0, 4.0))
    encoder = Encoder(FeatureSchema((Field("user", "context"), Field("ad", "candidate"), bid)))
    assert encoder.tokens({}, [{"bid": 4}, {"bid": 4_000_000}, {"bid": -1}, {}]).outside == {"bid": 2}
    assert Encoder(SCHEMA).tokens({}, [{"bid": 4_000_000}]).outside == {}


def test_unknown_token_has_id_zero_and_is_counted() -> None:
    encoder = Encoder(SCHEMA)
    model_input, unknown = encoder.ids(encoder.tokens({"user": "u9", "hour": 7}, [{"ad": "x"}, {"ad": "y"}]), LOOKUP)
    assert model_input.context_ids.tolist() == [[0, 2]]
    assert model_input.candidate_ids.tolist() == [[0], [0]]
    assert unknown == {"user": 1, "ad": 2}


def test_name_that_is_not_in_the_schema_is_ignored_and_counted_by_side() -> None:
    tokens = Encoder(SCHEMA).tokens(CONTEXT | {"ad": 1, "moon": "full"}, [{"ad": 1, "x": 1}, {"y": [1]}])
    assert tokens.ignored == {"context": 2, "candidate": 2}


@pytest.mark.parametrize(
    ("context", "candidates", "path", "reason"),
    [
        (
            {"user": ["u1"]},
            [],
            "$.context.user",
            "field 'user' must be a string, a number, a boolean or null, got a list",
        ),
        ({"hour": math.nan}, [], "$.context.hour", "field 'hour' must be a finite number, got nan"),
        ({}, [{}, {"bid": "1"}], "$.candidates[1].features.bid", "field 'bid' must be a number or null, got a string"),
        ({}, [{}, {}, {"bid": True}], "$.candidates[2].features.bid", "got a boolean"),
        ({}, [{"ad": {"id": 1}}], "$.candidates[0].features.ad", "got an object"),
    ],
)
def test_invalid_value_is_refused_with_its_path(
    context: dict[str, Any], candidates: list[dict[str, Any]], path: str, reason: str
) -> None:
    with pytest.raises(BadFeature) as refused:
        Encoder(SCHEMA).tokens(context, candidates)
    assert refused.value.path == path
    assert reason in refused.value.reason
    assert str(refused.value) == f"{path}: {refused.value.reason}"


def test_invalid_candidate_can_be_skipped_with_a_reason() -> None:
    candidates: list[dict[str, Any]] = [
        {"ad": 4082, "bid": 2},
        {"ad": [1]},
        {"ad": "ad-1", "bid": "x"},
        {"ad": "ad-1", "bid": 3},
    ]
    tokens = Encoder(SCHEMA).tokens(CONTEXT, candidates, skip_bad=True)
    assert tokens.rows == [0, 3]
    assert {row: error.path for row, error in tokens.errors.items()} == {
        1: "$.candidates[1].features.ad",
        2: "$.candidates[2].features.bid",
    }
    assert tokens.candidate_values.tolist() == [[0.0], [2.0]]


@pytest.mark.parametrize("strict", [False, True])
def test_candidates_with_known_errors_are_skipped_and_keep_their_errors(strict: bool) -> None:
    candidates: list[dict[str, Any]] = [{}, {"ad": "ad-1", "bid": 3}, {"ad": [1], "bid": 2}, {"ad": [1], "bid": 2}]
    known = {0: BadFeature("$.candidates[0].features", "not JSON"), 3: BadFeature("$.candidates[3].features.ad", "")}
    tokens = Encoder(SCHEMA, strict).tokens(CONTEXT, candidates, skip_bad=True, errors=known)
    assert tokens.rows == [1]
    assert tokens.candidate_values.tolist() == [[2.0]]
    assert {row: error.path for row, error in tokens.errors.items()} == {
        0: "$.candidates[0].features",
        2: "$.candidates[2].features.ad",
        3: "$.candidates[3].features.ad",
    }
    assert tokens.ignored.total() == 0
    assert list(known) == [0, 3]


def test_a_bad_context_is_never_skipped() -> None:
    with pytest.raises(BadFeature, match=r"\$\.context\.user"):
        Encoder(SCHEMA).tokens({"user": {}}, [{"ad": 1}], skip_bad=True)


def test_request_without_a_valid_candidate_has_empty_arrays() -> None:
    encoder = Encoder(SCHEMA)
    tokens = encoder.tokens(CONTEXT, [{"ad": [1]}], skip_bad=True)
    model_input, _ = encoder.ids(tokens, LOOKUP)
    assert model_input.candidate_ids.shape == (0, 1)
    assert model_input.candidate_values.shape == (0, 1)
    assert encoder.wanted(tokens) == {"user": ["u2"], "hour": ["7"]}


def test_each_distinct_token_is_looked_up_once() -> None:
    encoder = Encoder(SCHEMA)
    tokens = encoder.tokens({"user": "u1"}, [{"ad": 1}, {"ad": 2}, {"ad": 1.0}, {"ad": None}])
    assert encoder.wanted(tokens) == {"user": ["u1"], "hour": [], "ad": ["1", "2"]}


def test_strict_encoder_refuses_unknown_names() -> None:
    with pytest.raises(
        BadFeature, match=r"\$\.context\.moon: unknown context field 'moon': expected one of hour, user"
    ):
        Encoder(SCHEMA, strict=True).tokens(CONTEXT | {"moon": 1}, [])


@pytest.mark.parametrize(
    ("candidate", "name"), [({"bid": 1}, "ad"), ({"ad": 1}, "bid"), ({"ad": None, "bid": 1}, "ad")]
)
def test_strict_encoder_refuses_missing_values(candidate: dict[str, Any], name: str) -> None:
    with pytest.raises(BadFeature, match=rf"\$\.candidates\[0\]\.features\.{name}: field '{name}' is missing"):
        Encoder(SCHEMA, strict=True).tokens(CONTEXT, [candidate])


KNOWN = {"user": {"u1": 2}, "hour": {"8": 5}, "ad": {"4082": 2, "ad-1": 3}}


def test_known_tokens_get_the_same_ids_without_a_lookup() -> None:
    encoder = Encoder(SCHEMA)
    context: dict[str, Any] = {"user": "u1", "hour": "8"}
    candidates: list[dict[str, Any]] = [{"ad": "ad-1", "bid": 1}, {"ad": "4082", "bid": None}]
    plain = encoder.tokens(context, candidates)
    quick = encoder.tokens(context, candidates, known=KNOWN)
    assert [column.ids for column in quick.context + quick.candidates] == [[2], [5], [3, 2]]
    assert (quick.known(), plain.known()) == (4, 0)
    assert encoder.wanted(quick) == {}
    lookup = {name: ids.__getitem__ for name, ids in KNOWN.items()}
    (slow, slow_unknown), (fast, fast_unknown) = encoder.ids(plain, lookup), encoder.ids(quick, {})
    assert slow.context_ids.tolist() == fast.context_ids.tolist()
    assert slow.candidate_ids.tolist() == fast.candidate_ids.tolist()
    assert slow_unknown == fast_unknown
    assert (quick.missing, quick.ignored) == (plain.missing, plain.ignored)


@pytest.mark.parametrize("value", [None, " u1 ", 1, True, "u9", "", "x"])
def test_value_without_a_known_id_is_looked_up(value: object) -> None:
    encoder = Encoder(SCHEMA)
    known = {"ad": {"ad-1": 3, "1": 4, "true": 5, "u1": 6}}
    (plain,) = encoder.tokens({}, [{"ad": "ad-1"}, {"ad": value}]).candidates
    (quick,) = encoder.tokens({}, [{"ad": "ad-1"}, {"ad": value}], known=known).candidates
    assert quick.ids == [3, None]
    assert quick.places == [1]
    assert quick.tokens == plain.tokens[1:]


def test_list_among_known_tokens_is_refused_with_its_path() -> None:
    with pytest.raises(BadFeature, match=r"\$\.candidates\[1\]\.features\.ad"):
        Encoder(SCHEMA).tokens(CONTEXT, [{"ad": "ad-1"}, {"ad": ["ad-1"]}], known=KNOWN)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["ad", "bid", "moon"]), st.sampled_from(["ad-1", "4082", 4082, None, 2.5]))
    ),
    st.dictionaries(st.sampled_from(["user", "hour"]), st.sampled_from(["u1", "8", 8, None, "new"])),
)
def test_known_ids_do_not_change_ids_or_counts(candidates: list[dict[str, Any]], context: dict[str, Any]) -> None:
    encoder = Encoder(SCHEMA)
    lookup = {name: lambda token, ids=ids: ids.get(token, 0) for name, ids in KNOWN.items()}
    for candidate in candidates:
        if isinstance(candidate.get("bid"), str):
            del candidate["bid"]
    plain, quick = (encoder.tokens(context, candidates, known=known) for known in ({}, KNOWN))
    (slow_input, slow_unknown), (input_, unknown) = encoder.ids(plain, lookup), encoder.ids(quick, lookup)
    assert slow_input.candidate_ids.tolist() == input_.candidate_ids.tolist()
    assert slow_input.context_ids.tolist() == input_.context_ids.tolist()
    assert (slow_unknown, plain.missing, plain.ignored) == (unknown, quick.missing, quick.ignored)


VALUES = st.sampled_from([None, "u1", "u2", " u1 ", 7, 8.0, "4082", 4082, "ad-1", "other"])
NUMBERS = st.sampled_from([None, 0, 1.5, 1e9])
ROWS = st.fixed_dictionaries({}, optional={"user": VALUES, "hour": VALUES, "ad": VALUES, "bid": NUMBERS})


@given(st.lists(ROWS, min_size=1, max_size=5))
def test_rows_are_encoded_as_requests_with_one_candidate(rows: list[dict[str, Any]]) -> None:
    encoder = Encoder(SCHEMA)
    together = encoder.rows(rows, rows, LOOKUP)
    for index, row in enumerate(rows):
        alone, _ = encoder.ids(encoder.tokens(row, [row]), LOOKUP)
        assert together.context_ids[index].tolist() == alone.context_ids[0].tolist()
        assert together.candidate_ids[index].tolist() == alone.candidate_ids[0].tolist()
        assert together.candidate_values[index].tolist() == alone.candidate_values[0].tolist()
    assert together.context_values.shape == (len(rows), 0)
    assert encoder.row_errors(rows) == {}


def test_the_errors_of_rows_name_the_field() -> None:
    rows: list[dict[str, Any]] = [{"bid": 1}, {"bid": "cheap"}, {"user": ["u1"]}]
    errors = Encoder(SCHEMA).row_errors(rows)
    assert {index: error.path for index, error in errors.items()} == {1: "$.bid", 2: "$.user"}
    assert "field 'bid' must be a number or null, got a string" in errors[1].reason
    with pytest.raises(ValueError, match="must be a number"):
        Encoder(SCHEMA).rows(rows[:2], rows[:2], LOOKUP)
