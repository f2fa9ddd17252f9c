"""Warnings about models that are not worth serving, unseen values, downsampled negatives and weights."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from contract.schema import FeatureSchema, Field
from export.bundle import export
from export.cli.export import main as export_main
from model.cli.train import main
from model.data.prepare.prepare import prepare
from model.experiment_config import Training, read_experiment
from model.experiments.quality import base_rate_warning, leak_warning, measure_unseen
from model.experiments.report import markdown, summarize
from model.experiments.run_check import METRICS
from model.experiments.run_folder import RunMetrics
from model.experiments.train import train
from model.experiments.trial import open_log
from model.training.batches import Split
from tests.support.runs import trained_with

LEAKED = """
name = "shop"
[data]
reader = "table"
folder = "log"
prepared = "prepared"
train = "train.parquet"
valid = "valid.parquet"
test = "test.parquet"
context = ["user"]
candidate = ["ad", "paid"]
[model]
type = "lr"
[training]
epochs = 6
batch_size = 256
learning_rate = 0.05
"""


def a_split(ids: NDArray[Any], labels: NDArray[Any], **more: Any) -> Split:
    columns = ids[:, None] if ids.ndim == 1 else ids
    return Split(columns, np.zeros((len(labels), 0), np.float32), labels.astype(np.float32), **more)


def coin_flips(rows: int, ctr: float = 0.1, seed: int = 0) -> Split:
    random = np.random.default_rng(seed)
    return a_split(random.integers(2, 9, rows), random.random(rows) < ctr)


def test_a_model_that_is_worse_than_the_base_rate_is_reported_with_its_interval() -> None:
    split = coin_flips(5000)
    warning = base_rate_warning("test", split, np.full(5000, 0.4))
    assert warning is not None
    assert warning.startswith("the model is worse than the base rate on test: logloss 0.5")
    assert "±" in warning
    assert "Raise training.net_l2 and training.embedding_l2, or let ctr-train --auto find them" in warning


def test_a_model_that_knows_nothing_is_not_measurably_better_and_one_that_knows_more_is() -> None:
    split = coin_flips(5000)
    noise = np.random.default_rng(1).uniform(0.09, 0.11, 5000)
    warning = base_rate_warning("valid", split, noise) or ""
    assert "not measurably better" in warning
    assert f"The split has {int(split.labels.sum())} clicks" in warning
    assert base_rate_warning("valid", split, np.where(split.labels > 0.5, 0.2, 0.09)) is None


def test_rows_of_few_units_are_weaker_evidence_than_independent_rows() -> None:
    """Each of three users has a thousand rows with the same label."""
    labels, better = np.repeat([0.0, 1.0, 0.0], 1000), np.repeat([0.28, 0.44, 0.36], 1000)
    assert base_rate_warning("test", a_split(np.ones(3000, np.int32), labels), better) is None
    units = np.repeat([7, 8, 9], 1000)
    assert base_rate_warning("test", a_split(np.ones(3000, np.int32), labels, units=units), better) is not None


def test_a_leak_names_the_field_that_predicts_the_label_alone() -> None:
    random, labels = np.random.default_rng(0), np.tile([0.0, 1.0, 0.0, 0.0], 500)
    ids = np.stack([random.integers(2, 50, 2000), 2 + labels.astype(int)], 1)
    values = np.stack([random.normal(size=2000), random.normal(size=2000)], 1).astype(np.float32)
    fields = (Field("user", "context"), Field("paid", "candidate"), Field("a", "context", "numeric"))
    schema = FeatureSchema((*fields, Field("b", "context", "numeric")))
    split = Split(ids, values, labels.astype(np.float32))
    assert leak_warning(0.9989, split, schema) is None
    assert 'Field "paid" alone has an AUC of 1.00000' in (leak_warning(1.0, split, schema) or "")
    split.ids[:, 1] = 2
    assert "No single field" in (leak_warning(1.0, split, schema) or "")
    split.values[:, 1] = -labels  # an AUC of 0 is as suspicious as an AUC of 1
    assert 'Field "b" alone' in (leak_warning(1.0, split, schema) or "")


def test_unseen_values_are_the_rows_in_which_all_fields_of_a_group_are_unknown() -> None:
    ids = np.array([[0, 0], [0, 5], [0, 0], [7, 0], [0, 1]], np.int32)
    test = a_split(ids, np.array([1, 0, 0, 1, 0]), names=("ad", "campaign"))
    ctr = np.array([0.5, 0.1, 0.25, 0.9, 0.1])
    ad, both, campaign = measure_unseen((("ad",), ("ad", "campaign"), ("campaign",)), test, ctr)
    assert (ad.rows, both.rows, campaign.rows) == (4, 2, 3)
    assert both.logloss == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)
    assert both.predicted_over_observed == pytest.approx(0.75)
    (none,) = measure_unseen((("ad",),), test.select(np.array([3])), ctr[[3]])
    assert (none.rows, none.logloss, none.predicted_over_observed) == (0, None, None)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a log whose column `paid` is the label, and whose other columns are noise."""
    root, random = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    (root / "log").mkdir()
    for name, rows in (("train", 3000), ("valid", 2000), ("test", 2000)):
        click = (random.random(rows) < 0.2).astype(int)
        user, ad = (random.integers(0, count, rows).astype(str) for count in (20, 10))
        columns = {"user": user, "ad": ad, "paid": np.where(click, "yes", "no"), "label": click}
        pl.DataFrame(columns).write_parquet(root / "log" / f"{name}.parquet")
    (root / "shop.toml").write_text(LEAKED)
    prepare(root, read_experiment(root / "shop.toml").data)
    return root


def test_a_leak_is_a_warning_of_training_and_export_and_is_stored(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    assert main([str(shop / "shop.toml"), "--data", str(shop), "--out", str(run)]) == 0
    shown = capsys.readouterr()
    assert 'ctr-train: warning: valid AUC is 1.00000, so a field probably contains the label. Field "paid"' in shown.err
    assert "base rate 0.4" in shown.out
    assert "normalized entropy 0." in shown.out
    metrics = msgspec.json.decode((run / METRICS).read_bytes(), type=RunMetrics)
    assert len(metrics.warnings) == 1
    assert export_main([str(run), str(bundle), "--data", str(shop)]) == 0
    assert f"ctr-export: warning: {metrics.warnings[0]}" in capsys.readouterr().err


def test_a_model_that_overfits_is_a_warning(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = tmp_path / "noise.toml"
    noise = LEAKED.replace('["ad", "paid"]', '["ad"]').replace('"prepared"', '"prepared-noise"')
    toml.write_text(noise.replace("learning_rate = 0.05", "learning_rate = 1.0\nembedding_l2 = 0.0"))
    prepare(shop, read_experiment(toml).data)
    assert main([str(toml), "--data", str(shop), "--out", str(tmp_path / "run")]) == 0
    assert "than the base rate on test" in capsys.readouterr().err


def test_metrics_are_those_of_the_traffic_before_negatives_were_dropped(tmp_path: Path) -> None:
    """A log with all negatives and a log with a tenth of them give the same logloss, which the bundle states."""
    random = np.random.default_rng(4)
    (tmp_path / "log").mkdir()
    rate = 0.1
    for name, rows in (("train", 40_000), ("valid", 40_000), ("test", 40_000)):
        ad = random.integers(0, 5, rows)
        click = (random.random(rows) < 0.02 * (ad + 1)).astype(int)
        frame = pl.DataFrame({"user": random.integers(0, 3, rows).astype(str), "ad": ad.astype(str), "label": click})
        kept = (click == 1) | (random.random(rows) < rate)
        frame.write_parquet(tmp_path / "log" / f"{name}.parquet")
        frame.filter(pl.Series(kept)).write_parquet(tmp_path / "log" / f"{name}-sampled.parquet")
    (tmp_path / "all.toml").write_text(LEAKED.replace(', "paid"', ""))
    sampled = LEAKED.replace(', "paid"', "").replace(".parquet", "-sampled.parquet").replace('"prepared"', '"sampled"')
    (tmp_path / "sampled.toml").write_text(
        sampled.replace('reader = "table"', f'reader = "table"\nnegative_rate = {rate}')
    )
    found = {}
    for name in ("all", "sampled"):
        experiment = read_experiment(tmp_path / f"{name}.toml")
        prepare(tmp_path, experiment.data)
        found[name] = train(experiment, tmp_path, tmp_path / f"run-{name}")
    everything, some = found["all"].test, found["sampled"].test
    assert some.logloss == pytest.approx(everything.logloss, rel=0.05)
    assert some.base_logloss == pytest.approx(everything.base_logloss, rel=0.05)
    assert some.predicted_over_observed == pytest.approx(1, abs=0.1)
    assert found["sampled"].history[-1].valid.logloss == pytest.approx(everything.logloss, rel=0.05)
    predicted = [b.predicted for b in found["sampled"].reliability]
    assert max(predicted) < 0.2
    manifest, _ = export(tmp_path / "run-sampled", tmp_path / "bundle")
    assert manifest.metrics["test_logloss"] == some.logloss
    assert manifest.metrics["test_normalized_entropy"] == some.normalized_entropy


def test_weights_change_training_and_metrics_and_a_weight_of_zero_removes_a_row(shop: Path, tmp_path: Path) -> None:
    """If the rows of nine ads have weight 0, the metrics are those of the tenth ad's rows."""
    shutil.copytree(shop / "prepared", tmp_path / "prepared")
    for name in ("train", "valid", "test"):
        ids = np.load(tmp_path / "prepared" / f"{name}.ids.npy")
        np.save(tmp_path / "prepared" / f"{name}.weights.npy", np.where(ids[:, 1] == 2, 3.0, 0.0).astype(np.float32))
    experiment = trained_with(read_experiment(shop / "shop.toml"), epochs=1)
    log = open_log(experiment.data, tmp_path)
    weights = log.splits["train"].weights
    assert weights is not None
    assert weights.mean() == pytest.approx(1)
    metrics = train(experiment, tmp_path, tmp_path / "run")
    counted = log.splits["test"].labels[log.splits["test"].ids[:, 1] == 2]
    rate = counted.mean()
    assert metrics.test.base_logloss == pytest.approx(-(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)), rel=1e-5)
    unweighted = train(experiment, shop, tmp_path / "other")
    assert metrics.history[0].loss != unweighted.history[0].loss


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.full(3000, -1.0), "at least 0"),
        (np.full(3000, np.nan), "finite"),
        (np.ones(2), "2 rows instead of 3,000"),
    ],
)
def test_invalid_weights_are_rejected_before_training(
    shop: Path, tmp_path: Path, weights: NDArray[Any], words: str
) -> None:
    shutil.copytree(shop / "prepared", tmp_path / "prepared")
    np.save(tmp_path / "prepared" / "train.weights.npy", weights.astype(np.float32))
    with pytest.raises(ValueError, match=rf"train\.weights\.npy.*{words}"):
        open_log(read_experiment(shop / "shop.toml").data, tmp_path)


def test_the_ranking_within_requests_and_units_is_reported(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = tmp_path / "shop.toml"
    toml.write_text(LEAKED.replace("[model]", 'request = "user"\nunit = "ad"\n[model]').replace('ad", "paid', "ad"))
    shutil.copytree(shop / "log", tmp_path / "log")
    prepare(tmp_path, read_experiment(toml).data)
    assert main([str(toml), "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 0
    metrics = msgspec.json.decode((tmp_path / "run" / METRICS).read_bytes(), type=RunMetrics)
    assert metrics.test.ndcg is not None
    assert metrics.test.gauc is not None
    printed = capsys.readouterr().out
    assert f"test NDCG@10 within a request {metrics.test.ndcg:.5f}" in printed
    assert f"test AUC within a unit {metrics.test.gauc:.5f}" in printed
    page = markdown(summarize(read_experiment(toml), [metrics], [{}], None))
    expected = (
        f"mean AUC within a unit (gauc) **{metrics.test.gauc:.4f}** ± 0.0000, mean NDCG@10 within a request (ndcg) "
    )
    assert f"Ranking on test: {expected}**{metrics.test.ndcg:.4f}**" in page


def test_hide_names_must_be_fields_of_the_log(shop: Path, tmp_path: Path) -> None:
    experiment = trained_with(read_experiment(shop / "shop.toml"), hide=(("ad", "campaing"),))
    with pytest.raises(ValueError, match=r'training\.hide contains "campaing".*Choose from user, ad, paid'):
        train(experiment, shop, tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"hide": [[]]}, "A group needs one or more distinct fields"),
        ({"hide": [["ad", "ad"]]}, "distinct"),
        ({"hide": [["ad", "user"]], "unknown_rate": 0}, "no effect with unknown_rate = 0"),
    ],
)
def test_a_group_that_hides_nothing_is_rejected(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(keys, Training)


def test_unseen_values_are_in_the_run_and_the_report(shop: Path, tmp_path: Path) -> None:
    experiment = trained_with(read_experiment(shop / "shop.toml"), epochs=1, hide=(("ad",), ("ad", "user")))
    metrics = train(experiment, shop, tmp_path / "run")
    assert [(u.fields, u.rows) for u in metrics.unseen] == [(("ad",), 0), (("ad", "user"), 0)]
    page = markdown(summarize(experiment, [metrics], [{}], None))
    assert "| 1 | ad, user | 0 |  |  |" in page
    assert "normalized entropy **0." in page
