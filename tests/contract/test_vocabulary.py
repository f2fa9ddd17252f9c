"""Vocabulary: a token has the same id after writing and reading."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.vocabulary import FIRST, MISSING, UNKNOWN, Vocabulary, build_vocabulary, open_vocabulary
from tests.support.examples import examples

tokens = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), unique=True, max_size=30
)


def through_disk(folder: Path, vocabulary: Vocabulary, name: str = "ad") -> Vocabulary:
    vocabulary.save(folder, name)
    return open_vocabulary(folder, name)


@settings(deadline=None, max_examples=examples(50))
@given(ranked=tokens)
def test_token_has_the_id_of_its_rank_after_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, ranked: list[str]
) -> None:
    opened = through_disk(tmp_path_factory.mktemp("v"), build_vocabulary(ranked))
    assert [opened(t) for t in ranked] == list(range(FIRST, FIRST + len(ranked)))
    assert sorted(opened.items(), key=lambda item: item[1]) == [(t, i + FIRST) for i, t in enumerate(ranked)]
    assert len(opened) == len(ranked) + 2
    ids = np.arange(FIRST, FIRST + len(ranked), dtype=np.int32)[::-1]
    assert opened.tokens_of(ids) == ranked[::-1]


def test_empty_vocabulary_has_only_unknown_and_missing(tmp_path: Path) -> None:
    opened = through_disk(tmp_path, build_vocabulary([]))
    assert (UNKNOWN, MISSING) == (0, 1)
    assert len(opened) == 2
    assert opened("anything") == UNKNOWN


@pytest.mark.parametrize("token", ["", "ab", "abcd", "ABC", " abc"])
def test_prefix_or_extension_of_a_token_is_unknown(token: str) -> None:
    assert build_vocabulary(["abc"])(token) == UNKNOWN


def test_lone_surrogate_is_unknown() -> None:
    assert build_vocabulary(["a"])("\ud800") == UNKNOWN


def test_duplicate_token_is_refused() -> None:
    with pytest.raises(ValueError, match="1 tokens appear twice"):
        build_vocabulary(["a", "b", "a"])


@pytest.mark.parametrize("gone", ["ad.marisa", "ad.ids.npy"])
def test_missing_file_is_reported_with_the_field(tmp_path: Path, gone: str) -> None:
    through_disk(tmp_path, build_vocabulary(["a"]))
    (tmp_path / gone).unlink()
    with pytest.raises(ValueError, match="vocabulary of field 'ad'"):
        open_vocabulary(tmp_path, "ad")


def test_files_of_different_vocabularies_are_refused(tmp_path: Path) -> None:
    through_disk(tmp_path, build_vocabulary(["a", "b"]))
    np.save(tmp_path / "ad.ids.npy", np.array([2], np.int32))
    with pytest.raises(ValueError, match=r"'ad': found 2 tokens, but the ids are int32\[1\]"):
        open_vocabulary(tmp_path, "ad")


@pytest.mark.parametrize("ids", [[1, 2], [2, 4], [-1, 3]])
def test_id_outside_the_embedding_table_is_refused(tmp_path: Path, ids: list[int]) -> None:
    through_disk(tmp_path, build_vocabulary(["a", "b"]))
    np.save(tmp_path / "ad.ids.npy", np.array(ids, np.int32))
    with pytest.raises(ValueError, match=r"'ad': found ids .*; expected 2 to 3: create it again"):
        open_vocabulary(tmp_path, "ad")


def test_file_that_is_not_a_trie_is_reported_with_the_field(tmp_path: Path) -> None:
    through_disk(tmp_path, build_vocabulary(["a"]))
    (tmp_path / "ad.marisa").write_bytes(b"not a trie")
    with pytest.raises(ValueError, match="vocabulary of field 'ad'"):
        open_vocabulary(tmp_path, "ad")


def test_ids_are_never_unpickled(tmp_path: Path) -> None:
    through_disk(tmp_path, build_vocabulary(["a"]))
    np.save(tmp_path / "ad.ids.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        open_vocabulary(tmp_path, "ad")


def test_token_with_a_nul_character_is_unknown() -> None:
    assert build_vocabulary(["a"])("a\0b") == UNKNOWN


def test_token_with_a_nul_character_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="NUL"):
        build_vocabulary(["a\0b"])
