"""The normalized entropy and its interval, and the experiment file that the benchmark writes."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.any_log import normalized_entropy, toml_of
from model.experiment_config import read_experiment
from tests.support.paths import ROOT


def test_the_base_rate_has_an_entropy_of_one_and_the_truth_a_lower_one() -> None:
    truth = np.random.default_rng(1).beta(0.5, 100, 20_000)
    rows = np.arange(len(truth))
    constant = normalized_entropy(np.full(len(truth), truth.mean()), truth, rows)
    assert (constant.value, constant.half) == pytest.approx((1, 0))
    assert constant.verdict == "equal"
    exact, wrong = normalized_entropy(truth.clip(1e-9), truth, rows), normalized_entropy(truth[::-1], truth, rows)
    assert exact.verdict == "better"
    assert wrong.verdict == "worse"
    assert 0 < exact.half < 0.02


def test_the_interval_covers_the_entropy_of_all_rows_in_most_samples() -> None:
    random = np.random.default_rng(2)
    truth = random.beta(0.5, 20, 400_000)
    ctr = (truth * random.lognormal(0, 0.5, len(truth))).clip(1e-6, 0.999)
    full = normalized_entropy(ctr, truth, np.arange(len(truth))).value
    covered = 0
    for part in range(200):
        rows = slice(part * 2000, (part + 1) * 2000)
        entropy = normalized_entropy(ctr[rows], truth[rows], np.arange(2000))
        covered += abs(entropy.value - full) <= entropy.half
    assert 0.88 <= covered / 200 <= 0.99


def test_rows_of_the_same_request_widen_the_interval() -> None:
    truth = np.random.default_rng(3).beta(0.5, 20, 1000)
    ctr = truth.clip(1e-6) * 1.2
    once = normalized_entropy(ctr, truth, np.arange(1000))
    four_times = normalized_entropy(np.repeat(ctr, 4), np.repeat(truth, 4), np.repeat(np.arange(1000), 4))
    assert (four_times.value, four_times.half) == pytest.approx((once.value, once.half))


def test_the_written_data_section_is_the_published_one(tmp_path: Path) -> None:
    data = read_experiment(ROOT / "experiments/criteo/stec.toml").data
    (tmp_path / "x.toml").write_text(f'name = "x"\n[data]\n{toml_of(data)}')
    assert read_experiment(tmp_path / "x.toml").data == data
