"""Mean, dispersion and shape over time of each profile's arrivals."""

import numpy as np
import pytest
from numpy.typing import NDArray

from loadtest.openloop.arrivals import CURVES, Profile, arrival_times

PROFILES = list(CURVES)
RATE, SECONDS = 500.0, 60.0


def draw(
    profile: Profile, seed: int = 1, shared: int = 1, rate: float = RATE, seconds: float = SECONDS
) -> NDArray[np.float64]:
    return arrival_times(profile, rate, seconds, np.random.default_rng(seed), np.random.default_rng(shared))


def counts(times: NDArray[np.float64], window_s: float) -> NDArray[np.int64]:
    return np.histogram(times, bins=round(SECONDS / window_s), range=(0, SECONDS))[0]


def dispersion(times: NDArray[np.float64], window_s: float) -> float:
    """Return the variance of the number of arrivals per window over its mean: 1 for a steady Poisson process."""
    found = counts(times, window_s)
    return float(found.var() / found.mean())


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("rate", "seconds"), [(RATE, SECONDS), (2000, 0.5), (40, 3)])
def test_times_increase_and_lie_within_the_load(profile: Profile, rate: float, seconds: float) -> None:
    times = draw(profile, rate=rate, seconds=seconds)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < seconds


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seconds", [0.5, 6, SECONDS])
def test_the_mean_rate_is_the_requested_rate(profile: Profile, seconds: float) -> None:
    """The tolerance is five standard deviations of a Poisson count."""
    number, expected = len(draw(profile, seconds=seconds)), RATE * seconds
    assert abs(number - expected) < 5 * expected**0.5


@pytest.mark.parametrize("profile", PROFILES)
def test_equal_seeds_give_the_same_load(profile: Profile) -> None:
    assert draw(profile).tolist() == draw(profile).tolist()
    assert draw(profile).tolist() != draw(profile, seed=2).tolist()


def test_a_steady_load_is_a_poisson_process() -> None:
    times = draw("steady")
    assert dispersion(times, 0.1) == pytest.approx(1, abs=0.25)
    assert dispersion(times, 1.0) == pytest.approx(1, abs=0.7)
    gaps_s = np.diff(times)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05)


def test_bursts_are_far_more_dispersed_than_a_poisson_process() -> None:
    assert dispersion(draw("bursts"), 0.1) > 30


def test_bursts_contain_half_of_the_arrivals_in_a_tenth_of_the_time() -> None:
    found = np.sort(counts(draw("bursts", rate=5000), 0.02))[::-1]
    busiest = found[: len(found) // 10]
    assert busiest.sum() / found.sum() == pytest.approx(0.5, abs=0.03)
    assert np.median(busiest) == pytest.approx(5 * 5000 * 0.02, rel=0.1)
    assert np.median(found[len(found) // 5 :]) == pytest.approx(5 / 9 * 5000 * 0.02, rel=0.1)


def test_a_burst_lasts_a_fifth_of_a_second_on_average() -> None:
    busy = counts(draw("bursts", rate=5000), 0.01) > 2 * 5000 * 0.01
    bursts = np.count_nonzero(np.diff(busy.astype(int)) == 1)
    assert 20 <= bursts <= 30  # some are adjacent, or too short to be detected
    assert np.count_nonzero(busy) * 0.01 / bursts == pytest.approx(0.2, abs=0.1)


def test_processes_share_their_bursts_but_not_their_arrivals() -> None:
    first, second, other = draw("bursts", 1), draw("bursts", 2), draw("bursts", 3, shared=2)
    assert np.corrcoef(counts(first, 0.1), counts(second, 0.1))[0, 1] > 0.8
    assert np.corrcoef(counts(first, 0.1), counts(other, 0.1))[0, 1] < 0.4
    assert not np.isin(first, second).any()


def test_a_day_rises_from_its_trough_to_three_times_the_rate_and_falls_again() -> None:
    found = counts(draw("day", rate=5000), SECONDS / 100).astype(float)
    trough, peak = np.concatenate((found[:3], found[-3:])).mean(), found[47:53].mean()
    assert peak / trough == pytest.approx(3, rel=0.05)
    quarters = found.reshape(4, 25).sum(1)
    assert quarters[1:3].min() > 1.5 * quarters[[0, 3]].max()
    assert quarters[0] == pytest.approx(quarters[3], rel=0.03)
    assert dispersion(draw("day"), 0.1) > 3
