"""Writing TOML files."""

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from model.toml_text import MAX_VALUE_CHARS, toml_document, toml_text

KEYS = st.text(min_size=1, max_size=8)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.dates() | st.times(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(KEYS, values, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=4))
def test_a_document_is_read_as_it_was_written(document: dict[str, Any]) -> None:
    assert tomllib.loads(toml_document(document)) == document


def test_a_long_value_is_cut_off_only_in_messages() -> None:
    assert toml_text("x" * 200) == '"' + "x" * (MAX_VALUE_CHARS - 1) + "..."
    assert tomllib.loads(toml_document({"long": ["x" * 200]})) == {"long": ["x" * 200]}
