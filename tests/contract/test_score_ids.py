import uuid

from hypothesis import given
from hypothesis import strategies as st

from contract.score_ids import MAX_MS, RANDOM_BITS, is_logged, is_score_id, new_score_id, score_time_s


@given(st.integers(0, MAX_MS), st.booleans(), st.integers(0, 2**RANDOM_BITS - 1))
def test_a_score_id_states_when_the_answer_was_given_and_whether_it_was_logged(
    ms: int, logged: bool, random: int
) -> None:
    score_id = new_score_id(ms / 1000 + 0.0001, logged, random)
    assert is_score_id(score_id)
    assert score_time_s(score_id) == ms / 1000
    assert is_logged(score_id) is logged
    parsed = uuid.UUID(score_id)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_score_ids_are_distinct_and_sort_by_time() -> None:
    ids = [new_score_id(1_790_000_000 + second, False) for second in range(1000)]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)
    assert len({new_score_id(1.0, True) for _ in range(1000)}) == 1000


def test_other_texts_are_not_score_ids() -> None:
    score_id = new_score_id(1_790_000_000, True)
    for text in ("", score_id.upper(), score_id + "\n", score_id[:-1], str(uuid.uuid4()), score_id.replace("-", "")):
        assert not is_score_id(text), text
