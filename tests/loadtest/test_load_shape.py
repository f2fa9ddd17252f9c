"""A load shape's number of users over time."""

import math

import pytest

from loadtest.load_shape import Shape

SHAPE = Shape(users=100, spike_users=300, ramp_s=10, steady_s=20, spike_s=5, down_s=10)


@pytest.mark.parametrize(
    ("since_s", "users"),
    [
        (0, 1),
        (5, 50),
        (9.99, 100),
        (10, 100),
        (29.9, 100),
        (30, 300),
        (34.9, 300),
        (35, 100),
        (40, 50),
        (44.99, 1),
        (45, None),
        (1000, None),
    ],
)
def test_users_ramp_up_stay_spike_and_ramp_down(since_s: float, users: int | None) -> None:
    assert SHAPE.users_at(since_s) == users


def test_a_phase_of_zero_seconds_is_skipped() -> None:
    spike = Shape(10, 20, ramp_s=0, steady_s=0, spike_s=5, down_s=0)
    assert [spike.users_at(since_s) for since_s in (0, 4.9, 5)] == [20, 20, None]


@pytest.mark.parametrize(
    ("field", "value"),
    [("users", 0), ("spike_users", -1), ("ramp_s", -1.0), ("steady_s", math.nan), ("down_s", math.inf)],
)
def test_an_invalid_shape_is_an_error_that_names_the_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Shape(**{"users": 1, "spike_users": 1, field: value})  # type: ignore[arg-type]
