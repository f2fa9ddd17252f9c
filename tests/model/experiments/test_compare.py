"""Compare the results of ctr-compare with known results."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from model.cli.compare import main
from model.experiment_config import read_experiment
from model.experiments.bootstrap import WeightedAuc, bootstrap_auc, bootstrap_mean
from model.experiments.compare import clusters_of, compare_runs
from model.experiments.run_registry import RUNS, RunList
from model.experiments.significance import compare_seeds, read_seeds, welch
from model.experiments.train import train
from model.training.batches import Split
from tests.support.runs import make_root, run, trained_with

PAIR = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
OTHER = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]


def test_welchs_t_test_reproduces_the_published_example() -> None:
    difference = welch(PAIR, OTHER)
    assert difference.value == pytest.approx(20.82 - 22.98667, abs=1e-4)
    assert difference.p == pytest.approx(0.021, abs=5e-4)  # t = -2.46, 24.99 degrees of freedom
    assert difference.low < difference.value < difference.high < 0


def test_equal_samples_do_not_differ() -> None:
    difference = welch(PAIR, PAIR)
    assert (difference.value, difference.p) == (0, 1)
    assert difference.low == pytest.approx(-difference.high)


def test_one_of_the_samples_may_have_no_variance() -> None:
    assert welch([0.5, 0.5, 0.5], [0.6, 0.61, 0.59]).p < 0.01


@pytest.mark.parametrize(("a", "b", "words"), [([0.5], PAIR, "at least two"), ([0.5] * 3, [0.6] * 3, "no variance")])
def test_samples_that_cannot_be_tested_are_rejected(a: list[float], b: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        welch(a, b)


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(0, 3)), min_size=4, max_size=30
    )
)
def test_the_weighted_auc_equals_that_of_scikit_learn(rows: list[tuple[bool, float, int]]) -> None:
    rows = [*rows, (True, 0.3, 1), (False, 0.3, 1)]
    labels, ctr, counts = (np.array(column) for column in zip(*rows, strict=True))
    expected = roc_auc_score(labels, ctr, sample_weight=counts)
    assert WeightedAuc(labels.astype(float), ctr)(counts) == pytest.approx(expected)


def test_the_bootstrap_distinguishes_a_better_model_from_an_equal_one() -> None:
    random = np.random.default_rng(3)
    true = random.uniform(0.05, 0.95, 3000)
    labels = (random.random(3000) < true).astype(float)
    noisy, as_noisy = (true + random.normal(0, 0.5, 3000) for _ in range(2))
    value, low, _, p = bootstrap_auc(labels, true, noisy, resamples=300)
    assert value == pytest.approx(roc_auc_score(labels, true) - roc_auc_score(labels, noisy))
    assert low > 0
    assert p < 0.01
    _, low, high, p = bootstrap_auc(labels, noisy, as_noisy, resamples=300)
    assert low < 0 < high
    assert p > 0.05


def test_the_bootstrap_interval_of_a_mean_is_close_to_the_normal_one() -> None:
    values = np.random.default_rng(5).normal(0.2, 1, 2000)
    value, low, high, _ = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.1 * half)


def test_the_bootstrap_is_deterministic() -> None:
    values = np.random.default_rng(5).normal(0, 1, 100)
    assert bootstrap_mean(values, 100) == bootstrap_mean(values, 100)


def report(path: Path, aucs: list[float], reader: str = "frappe", fingerprint: str | None = None) -> str:
    """Write a report. Without a fingerprint, it has the format of older versions."""
    runs = [{"seed": n, "test": {"auc": auc / 100, "logloss": auc / 300}} for n, auc in enumerate(aucs, 1)]
    experiment = {"name": path.stem, "data": {"reader": reader, "folder": "logs"}}
    facts = {"data": {"fingerprint": fingerprint}} if fingerprint else {}
    path.write_text(json.dumps({"experiment": experiment, "runs": runs, "parameters": 1} | facts))
    return str(path)


def test_the_command_compares_two_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = report(tmp_path / "a.json", PAIR), report(tmp_path / "b.json", OTHER)
    monkeypatch.setattr("sys.argv", ["ctr-compare", a, b])
    assert main() == 0
    text = capsys.readouterr().out
    assert "a (15 seeds) and b (15 seeds), Welch's t-test" in text
    assert "p: 0.02" in text


def test_reports_in_this_repository_can_be_compared() -> None:
    names = ("experiments/frappe/results/stec.json", "experiments/frappe/results/stec-request.json")
    differences = compare_seeds(*(read_seeds(name, None) for name in names))
    assert 0 <= differences["test AUC"].p <= 1


def test_reports_of_two_logs_cannot_be_compared(tmp_path: Path) -> None:
    """Two readers may use logs in the same folder, and a log may have been prepared in two different ways."""
    a = report(tmp_path / "a.json", PAIR, "movielens_1m")
    b = report(tmp_path / "b.json", OTHER, "movielens_tag")
    with pytest.raises(ValueError, match=r"movielens_1m in logs, .*cannot be compared"):
        compare_seeds(read_seeds(a, None), read_seeds(b, None))
    a, b = (report(tmp_path / f"{n}.json", PAIR, "frappe", fingerprint=n) for n in ("f00d", "beef"))
    with pytest.raises(ValueError, match="differently prepared data"):
        compare_seeds(read_seeds(a, None), read_seeds(b, None))
    c = report(tmp_path / "c.json", PAIR, "frappe")
    assert compare_seeds(read_seeds(a, None), read_seeds(c, None))["test AUC"].p == 1


def test_runs_are_found_by_name_or_digest(tmp_path: Path) -> None:
    runs = RunList(tmp_path / RUNS)
    for seed in (1, 2):
        runs.append(run(seed))
    assert read_seeds("x", runs.path).aucs == [0.6, 0.6]
    assert read_seeds(run(1).digest, runs.path).aucs == [0.6, 0.6]
    with pytest.raises(ValueError, match="no run with the name or digest 'y'"):
        read_seeds("y", runs.path)
    runs.append(run(3, embedding=32))
    with pytest.raises(ValueError, match="different settings"):
        read_seeds("x", runs.path)


def test_a_run_is_counted_once_whatever_its_name(tmp_path: Path) -> None:
    runs = RunList(tmp_path / RUNS)
    renamed = msgspec.structs.replace(run(2), experiment=msgspec.structs.replace(run(2).experiment, name="y"))
    older = msgspec.structs.replace(run(3), digest="of an older version with one key fewer")
    for one in (run(1), renamed, older, run(1), run(4, embedding=32)):
        runs.append(one)
    assert len(read_seeds(run(1).digest, runs.path).aucs) == 3
    assert len(read_seeds("y", runs.path).aucs) == 3


@pytest.mark.parametrize(("content", "words"), [("{}", "not a report"), ("[]", "not a report"), ("{", "not a report")])
def test_a_file_that_is_not_a_report_is_an_error_that_names_it(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=rf"a\.json is {words}"):
        read_seeds(str(tmp_path / "a.json"), None)


def test_a_name_without_a_report_or_runs_is_an_error_with_the_fix() -> None:
    with pytest.raises(ValueError, match="add --runs"):
        read_seeds("stec-frappe", None)
    with pytest.raises(ValueError, match="no such report"):
        read_seeds("nowhere.json", None)


def test_the_bootstrap_draws_units_or_else_requests_or_else_rows() -> None:
    rows = Split(np.zeros((3, 1)), np.zeros((3, 0), np.float32), np.array([0, 1, 0], np.float32))
    codes = np.array([1, 1, -3])
    assert clusters_of(rows) == ("rows", None)
    assert clusters_of(replace(rows, requests=codes)) == ("requests", codes)
    assert clusters_of(replace(rows, requests=np.arange(3), units=codes)) == ("units", codes)


def test_rows_of_a_request_are_not_independent() -> None:
    """Each row is repeated in its request, which must not narrow the interval."""
    values = np.random.default_rng(5).normal(0.2, 1, 1000)
    _, low, high, _ = bootstrap_mean(values)
    assert bootstrap_mean(np.repeat(values, 4), clusters=np.repeat(np.arange(1000), 4))[1:3] == pytest.approx(
        (low, high)
    )
    _, row_low, row_high, _ = bootstrap_mean(np.repeat(values, 4))
    assert row_high - row_low == pytest.approx((high - low) / 2, rel=0.1)


def test_two_trained_models_are_compared_on_the_same_rows(tmp_path: Path) -> None:
    root = make_root(tmp_path / "data", requests=300)
    experiment = trained_with(read_experiment(root / "experiments" / "tiny.toml"), epochs=1, batch_size=128)
    one = train(experiment, root, tmp_path / "one")
    other = train(trained_with(experiment, learning_rate=0.02), root, tmp_path / "other")
    method, differences = compare_runs(tmp_path / "one", tmp_path / "other", root)
    rows = len(np.load(root / "prepared" / "test.labels.npy", mmap_mode="r"))
    assert method == f"paired bootstrap over the {rows:,} rows of the test set, 2,000 resamples"
    assert differences["test AUC"].value == pytest.approx(one.test.auc - other.test.auc, abs=1e-6)
    assert differences["test logloss"].value == pytest.approx(one.test.logloss - other.test.logloss, abs=1e-6)
    itself = compare_runs(tmp_path / "one", tmp_path / "one", root)[1]["test AUC"]
    assert (itself.value, itself.low, itself.high, itself.p) == (0, 0, 0, 1)
    make_root(tmp_path / "data again", requests=200)  # the same [data] section, but other vocabularies
    with pytest.raises(ValueError, match=r"is not the log that .*one was trained on"):
        compare_runs(tmp_path / "one", tmp_path / "other", tmp_path / "data again")
    ids = next((root / "prepared" / "vocabulary").glob("*.ids.npy"))  # the same schema, but ids for other tokens
    np.save(ids, np.load(ids)[::-1])
    with pytest.raises(ValueError, match=r"is not the log that .*one was trained on"):
        compare_runs(tmp_path / "one", tmp_path / "other", root)
