"""Golden requests: invalid files are refused, and the comparison detects NaN and missing answers."""

import math
from pathlib import Path

import pytest

from contract.golden import Difference, GoldenCandidate, GoldenRequest, largest_difference, read_golden, write_golden


def test_golden_requests_are_unchanged_after_writing_and_reading(tmp_path: Path) -> None:
    candidates = [GoldenCandidate("ad-1", {"item": 4082, "cost": None}), GoldenCandidate("ad-2", {"item": "x"})]
    golden = [GoldenRequest({"user": "u1", "new": True}, candidates, [0.25, 0.5])]
    write_golden(golden, tmp_path / "golden.jsonl")
    assert read_golden(tmp_path / "golden.jsonl") == golden


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no requests"),
        ("{", "golden.jsonl"),
        ('{"context": {}, "candidates": []}\n', "ctr"),
        ('{"context": {}, "candidates": [], "ctr": [0.5]}\n', ":1: 0 candidates, 1 ctr"),
        ('{"context": {}, "candidates": [], "ctr": []}\n', ":1: 0 candidates, 0 ctr.*at least one"),
        ('{"context": {"a": ' + "[" * 100_000, "golden.jsonl.*export the run again"),
    ],
)
def test_invalid_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "golden.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_golden(tmp_path / "golden.jsonl")


def test_largest_difference_is_returned() -> None:
    assert largest_difference([0.1, 0.5, 0.9], [0.1, 0.25, 0.8]) == Difference(0.25, 0.5)
    assert largest_difference([0.001, 0.5], [0.002, 0.25]) == Difference(0.25, 1.0)
    assert largest_difference([], []) == Difference(0.0, 0.0)
    assert largest_difference([0.0], [0.0]) == Difference(0.0, 0.0)


@pytest.mark.parametrize(
    ("expected", "answered", "tolerated"),
    [
        (0.5, 0.500009, True),
        (0.5, 0.500011, False),
        (1e-4, 1.0009e-4, True),
        (1e-4, 1.1e-4, False),  # A tenth of the probability, but only 1e-5.
        (0.0, 1e-9, False),
    ],
)
def test_both_the_absolute_and_the_relative_difference_must_be_small(
    expected: float, answered: float, tolerated: bool
) -> None:
    assert largest_difference([0.5, expected], [0.5, answered]).is_tolerated is tolerated


@pytest.mark.parametrize("answered", [[], [0.5], [0.5, 0.5, 0.5]])
def test_difference_is_infinite_if_the_number_of_answers_differs(answered: list[float]) -> None:
    assert largest_difference([0.5, 0.5], answered) == Difference(math.inf, math.inf)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_difference_is_infinite_if_an_answer_is_nan(place: int) -> None:
    answered = [0.5, 0.5, 0.5]
    answered[place] = math.nan
    assert largest_difference([0.5, 0.5, 0.5], answered) == Difference(math.inf, math.inf)
