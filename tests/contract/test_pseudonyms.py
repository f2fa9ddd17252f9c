"""Pseudonyms: the same in training and serving, stable, and never a raw value."""

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.encode import Encoder
from contract.golden import GoldenRequest
from contract.pseudonyms import (
    CACHED_TOKENS,
    MAX_CACHED_CHARS,
    MAX_KEY_BYTES,
    VARIABLE,
    Pseudonymizer,
    PseudonymKeyError,
    check_pseudonym_key,
    is_pseudonym,
    open_pseudonymizer,
    read_pseudonym_key,
)
from contract.raw_values import sources
from contract.reader import BadFeature, Lookup
from contract.schema import FeatureSchema, Field
from contract.tokens import token, tokenizer
from contract.vocabulary import FIRST, UNKNOWN, build_vocabulary
from model.data.prepare.columns import text_column
from model.data.prepare.counting import DistinctValues, count_tokens
from tests.support.permissions import another_user, public_folder

KEY = b"a key of sixteen or more bytes"
PSEUDONYMS = Pseudonymizer(KEY)
OTHER = Pseudonymizer(b"another key of as many bytes")
USER = Field("user", "context", missing=("-1", "n/a"), pseudonym="hmac")
AD = Field("ad", "candidate")
SCHEMA = FeatureSchema((USER, AD), PSEUDONYMS.fingerprint)
# A surrogate cannot be in a log, but a client can send one.
TEXTS = st.text() | st.sampled_from(["123", " 123\t", "123.0", "0123", "true", "\ud800", "p:", "p:0f", "x" * 5000])
VALUES = TEXTS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()

# Columns of a log, of each type that a categorical field can have. Text may have spaces, or be a missing value.
TEXT_OF_A_LOG = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
TEXT_OF_A_LOG |= st.sampled_from(["123", " 123 ", "123.0", "true", "n/a", " -1", PSEUDONYMS.pseudonym("123")])
KINDS: list[tuple[st.SearchStrategy[Any], pl.DataType]] = [
    (TEXT_OF_A_LOG, pl.String()),
    (st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-1, 123]), pl.Int64()),
    (st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([-1.0, 123.0, 0.1]), pl.Float64()),
    (st.booleans(), pl.Boolean()),
]
COLUMNS = st.sampled_from(KINDS).flatmap(
    lambda kind: st.lists(st.none() | kind[0], min_size=1, max_size=8).map(
        lambda values: pl.Series(values, dtype=kind[1])
    )
)


def test_a_pseudonym_is_what_other_programs_compute() -> None:
    digest = hmac.new(KEY, b"user-1", hashlib.sha256).hexdigest()
    assert PSEUDONYMS.pseudonym("user-1") == f"p:{digest[:32]}"
    # openssl dgst -sha256 -hmac "a key of sixteen or more bytes"
    assert PSEUDONYMS.pseudonym("user-1") == "p:710e8503372b43da709b3cf08aefe1ff"


@given(TEXTS)
def test_the_pseudonym_of_a_pseudonym_is_itself(text: str) -> None:
    pseudonym = PSEUDONYMS.pseudonym(text)
    assert is_pseudonym(pseudonym)
    assert PSEUDONYMS.pseudonym(pseudonym) == OTHER.pseudonym(pseudonym) == pseudonym


@pytest.mark.parametrize("text", ["p:", f"p:{'0' * 31}", f"p:{'0' * 33}", f"p:{'A' * 32}", f"P:{'0' * 32}", "0" * 34])
def test_only_the_exact_form_counts_as_a_pseudonym(text: str) -> None:
    assert not is_pseudonym(text)
    assert PSEUDONYMS.pseudonym(text) != text


@given(VALUES)
def test_a_value_becomes_the_pseudonym_of_its_token(value: Any) -> None:
    text = token(value)
    expected = None if text is None or text in ("-1", "n/a") else PSEUDONYMS.pseudonym(text)
    assert tokenizer(USER, PSEUDONYMS)(value) == expected


def test_equal_values_in_different_types_have_the_same_pseudonym() -> None:
    read = tokenizer(USER, PSEUDONYMS)
    assert read(123) == read(123.0) == read("123") == read(" 123 ") != read("123.0")
    assert read(True) == read("true")
    assert read(-1) is read("n/a") is read("") is read(None) is None


@pytest.mark.parametrize("value", [[1], {"a": 1}, float("nan")])
def test_a_value_that_is_not_a_category_is_refused_without_naming_it(value: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        tokenizer(USER, PSEUDONYMS)(value)


@given(COLUMNS, st.integers(1, 3))
def test_training_and_serving_give_the_same_ids(column: pl.Series, min_count: int) -> None:
    values = DistinctValues()
    codes = values.codes(text_column(column))
    vocabulary, ids = count_tokens(values.distinct(), np.bincount(codes), USER, min_count, PSEUDONYMS)
    assert all(is_pseudonym(stored) for stored, _ in vocabulary.items())
    encoder = Encoder(SCHEMA, pseudonyms=PSEUDONYMS)
    lookup: Lookup = {"user": vocabulary, "ad": lambda _: UNKNOWN}
    for value, expected in zip(column.to_list(), ids[codes].tolist(), strict=True):
        model_input, _ = encoder.ids(encoder.tokens({"user": value}, [{}]), lookup)
        assert model_input.context_ids.tolist() == [[expected]]


def test_tokens_that_are_equally_frequent_are_in_the_order_of_their_pseudonyms() -> None:
    raw = [f"user-{number:03}" for number in range(50)]
    vocabulary, _ = count_tokens(pl.Series(raw), np.ones(51, np.int64), USER, 1, PSEUDONYMS)
    stored = vocabulary.tokens_of(np.arange(FIRST, FIRST + 50, dtype=np.int32))
    assert stored == sorted(map(PSEUDONYMS.pseudonym, raw))


def test_a_raw_value_does_not_match_a_known_token() -> None:
    encoder = Encoder(SCHEMA, pseudonyms=PSEUDONYMS)
    known = {"user": {"user-1": 7, PSEUDONYMS.pseudonym("user-2"): 8}}
    assert encoder.tokens({"user": "user-1"}, [{}], known=known).context[0].ids == [None]
    assert encoder.tokens({"user": "user-2"}, [{}], known=known).context[0].ids == [8]
    assert encoder.wanted(encoder.tokens({"user": "user-1"}, [{}], known=known))["user"] == [
        PSEUDONYMS.pseudonym("user-1")
    ]


def test_without_a_key_only_pseudonyms_can_be_read() -> None:
    encoder, pseudonym = Encoder(SCHEMA), PSEUDONYMS.pseudonym("user-1")
    assert encoder.tokens({"user": pseudonym}, [{}]).context[0].tokens == [pseudonym]
    assert encoder.tokens({"user": "n/a"}, [{}]).context[0].tokens == [None]
    with pytest.raises(BadFeature, match=VARIABLE) as error:
        encoder.tokens({"user": "user-1"}, [{}])
    assert "user-1" not in str(error.value)


@given(VALUES | st.none() | st.lists(st.integers()))
def test_features_without_raw_values_are_read_as_the_raw_ones(value: Any) -> None:
    encoder = Encoder(SCHEMA, pseudonyms=PSEUDONYMS)
    written = encoder.without_raw_values({"user": value, "ad": 4001, "other": value})
    assert written["user"] is None or is_pseudonym(written["user"])
    assert (written["ad"], written["other"]) == (4001, value)
    try:
        expected = encoder.tokens({"user": value}, [{}]).context
    except BadFeature:
        assert written["user"] is None
    else:
        assert Encoder(SCHEMA).tokens({"user": written["user"]}, [{}]).context == expected


def test_golden_values_of_a_field_with_pseudonyms_need_no_key() -> None:
    stored = PSEUDONYMS.pseudonym("user-1")
    (source,) = sources([USER], {"user": [stored]})
    assert list(source.known) == [stored]
    drawn = [source.unknown(index) for index in range(100)]
    assert len(set(drawn)) == 100
    assert all(is_pseudonym(str(value)) for value in drawn)
    assert source.is_known(source.example(), {"user": build_vocabulary([stored])})
    (empty,) = sources([USER], {"user": []})
    assert is_pseudonym(str(empty.example()))
    request = GoldenRequest({"user": drawn[0]}, [], [])
    assert Encoder(SCHEMA).tokens(request.context, [{}]).context[0].tokens == [drawn[0]]


def test_the_cache_is_bounded_and_does_not_hold_long_values() -> None:
    pseudonyms = Pseudonymizer(KEY)
    for number in range(CACHED_TOKENS + 100):
        pseudonyms.pseudonym(str(number))
    pseudonyms.pseudonym("x" * (MAX_CACHED_CHARS + 1))
    facts = pseudonyms._cached.cache_info()
    assert (facts.currsize, facts.misses) == (CACHED_TOKENS, CACHED_TOKENS + 100)


def test_a_fingerprint_identifies_the_key_and_is_not_the_hash_of_the_key() -> None:
    assert PSEUDONYMS.fingerprint == Pseudonymizer(KEY).fingerprint != OTHER.fingerprint
    assert hashlib.sha256(KEY).hexdigest()[:32] != PSEUDONYMS.fingerprint
    assert "sixteen" not in f"{PSEUDONYMS!r} {PSEUDONYMS.fingerprint}"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"0123456789abcdef\n", b"0123456789abcdef"),
        (b"  0123456789abcdef\r\n", b"0123456789abcdef"),
        (b"\n" + bytes(range(16)) + b" ", b"\n" + bytes(range(16)) + b" "),
    ],
    ids=["line-break", "spaces", "binary"],
)
def test_white_space_is_removed_from_a_text_key_only(tmp_path: Path, content: bytes, key: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    assert read_pseudonym_key(tmp_path / "key").pseudonym("x") == Pseudonymizer(key).pseudonym("x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes; expected at least 16 random bytes. Create a key"),
        (b" 0123456789abcde\n", "has 15 bytes; expected at least 16"),
        (b"x" * (MAX_KEY_BYTES + 1), f"more than {MAX_KEY_BYTES} bytes"),
    ],
)
def test_a_bad_key_is_refused_with_its_file_and_the_way_out(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(PseudonymKeyError, match=message) as error:
        read_pseudonym_key(tmp_path / "key")
    assert str(tmp_path / "key") in str(error.value)
    assert b"0123456789" not in str(error.value).encode()


def test_a_missing_key_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PseudonymKeyError, match=r"nokey: the key cannot be read \(No such file.*openssl rand"):
        read_pseudonym_key(tmp_path / "nokey")


def test_a_key_that_this_user_may_not_read_is_reported_without_making_it_public() -> None:
    with public_folder() as folder:
        (folder / "key").write_bytes(KEY)
        (folder / "key").chmod(0)
        with another_user(), pytest.raises(PseudonymKeyError, match="may not read") as error:
            read_pseudonym_key(folder / "key")
    assert "o+r" not in str(error.value)


def test_a_key_that_every_user_can_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    with caplog.at_level(logging.WARNING):
        read_pseudonym_key(tmp_path / "key")
        assert not caplog.text
        (tmp_path / "key").chmod(0o644)
        read_pseudonym_key(tmp_path / "key")
    assert "chmod 600" in caplog.text


def test_the_argument_takes_precedence_over_the_environment(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(KEY)
    (tmp_path / "two").write_bytes(b"another key of as many bytes")
    found = open_pseudonymizer(tmp_path / "two", {VARIABLE: str(tmp_path / "one")})
    assert found is not None
    assert found.fingerprint == OTHER.fingerprint
    found = open_pseudonymizer(None, {VARIABLE: str(tmp_path / "one")})
    assert found is not None
    assert found.fingerprint == PSEUDONYMS.fingerprint
    assert open_pseudonymizer(None, {}) is open_pseudonymizer(None, {VARIABLE: ""}) is None


def test_the_key_must_be_the_schemas() -> None:
    check_pseudonym_key(SCHEMA, PSEUDONYMS, required=True)
    check_pseudonym_key(SCHEMA, None)
    check_pseudonym_key(FeatureSchema((Field("user", "context"), AD)), OTHER, required=True)
    with pytest.raises(PseudonymKeyError, match=f'"user", and there is no key: set {VARIABLE}'):
        check_pseudonym_key(SCHEMA, None, required=True)
    with pytest.raises(PseudonymKeyError, match=f"{PSEUDONYMS.fingerprint}.*{OTHER.fingerprint}"):
        check_pseudonym_key(SCHEMA, OTHER)


def test_a_schema_without_pseudonyms_has_the_same_json_as_before() -> None:
    schema = FeatureSchema((Field("user", "context"), AD))
    assert b"pseudonym" not in msgspec.json.encode(schema)
    assert len({schema.fingerprint(), SCHEMA.fingerprint(), FeatureSchema((USER, AD), "0").fingerprint()}) == 3
