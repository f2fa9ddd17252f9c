"""Test ctr-train, the run folder and the report on a small generated log."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from contract.bundle import SCHEMA
from contract.schema import FeatureSchema, read_schema, write_schema
from contract.system_errors import describe
from model.cli.train import main
from model.data.prepare.prepared import read_prepared
from model.experiment_config import read_experiment
from model.experiments.report import check_one_experiment, check_one_log
from model.experiments.report import main as report_main
from model.experiments.run_check import METRICS
from model.experiments.run_folder import EXPERIMENT, WEIGHTS, DataFacts, open_run
from model.experiments.train import train
from model.experiments.trial import fingerprint, load_split
from model.training.fit import predict
from model.training.metrics import evaluate
from tests.support.permissions import another_user, public_folder
from tests.support.runs import TINY, copy_to_change, make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a prepared log and a run."""
    root = make_root(tmp_path_factory.mktemp("train"))
    train(read_experiment(root / TINY), root, root / "run")
    return root


def test_a_run_folder_has_the_files_that_the_exporter_and_people_need(root: Path) -> None:
    names = {path.name for path in (root / "run").iterdir()}
    assert names >= {"experiment.json", "weights.safetensors", "metrics.json", "versions.json", "curve.png"}
    assert names >= {"schema.json", "vocabulary"}
    assert json.loads((root / "run" / "versions.json").read_text())["torch"].startswith("2.")


def test_the_model_of_an_opened_run_has_the_auc_in_its_metrics(root: Path) -> None:
    model, experiment, schema, metrics = open_run(root / "run")
    test = load_split(read_prepared(root / "prepared"), "test")
    assert evaluate(test.labels, predict(model, test)).auc == pytest.approx(metrics.test.auc, abs=1e-6)
    assert experiment.name == "tiny"
    assert len(schema.fields) >= 15


def test_a_key_of_the_model_without_effect_is_a_warning(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = tmp_path / "interhat.toml"
    data = (root / TINY).read_text().partition("[model]")[0]
    toml.write_text(f"{data}[model]\ntype = 'interhat'\nmlp_dropout = 0.1\n[training]\nepochs = 1\n")
    assert main([str(toml), "--data", str(root), "--out", str(tmp_path / "run")]) == 0
    assert "warning: model.mlp_dropout = 0.1 has no effect with mlp = []. Remove it" in capsys.readouterr().err


def test_the_seed_argument_is_used_and_recorded(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(root / TINY), "--data", str(root), "--out", str(tmp_path / "run"), "--seed", "5"]) == 0
    printed = capsys.readouterr().out
    assert "test AUC" in printed
    assert "epoch 1" in printed
    assert json.loads((tmp_path / "run" / EXPERIMENT).read_text())["training"]["seed"] == 5


@pytest.mark.parametrize("exact", [True, False])
def test_the_result_explains_why_it_differs_from_the_line_of_its_epoch(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], exact: bool
) -> None:
    toml = tmp_path / "norms.toml"
    data = (root / TINY).read_text().partition("[model]")[0]
    toml.write_text(
        f"{data}[model]\ntype = 'finalmlp'\nmlp2_batch_norm = true\n[training]\nepochs = 1\n"
        f"exact_statistics = {str(exact).lower()}\n"
    )
    assert main([str(toml), "--data", str(root), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    epoch = re.search(r"^epoch 1\* .* logloss (0\.\d{5}) .* lr 1e-03 \d+\.\d s$", printed, re.MULTILINE)
    result = re.search(r"^best epoch 1: valid logloss (0\.\d{5}) \(base rate [^)]*\)(.*)$", printed, re.MULTILINE)
    assert epoch
    assert result
    if exact:
        assert result[1] != epoch[1]
        assert result[2] == f", {epoch[1]} before the batch norms' statistics were computed over the whole training set"
    else:
        assert (result[1], result[2]) == (epoch[1], "")


def test_another_kind_of_folder_is_rejected_before_training(root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"has no metrics\.json"):
        train(read_experiment(root / TINY), root, tmp_path)


def test_the_error_for_an_unprepared_log_names_the_command_that_prepares_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ctr-train", str(root / TINY), "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 2
    assert "ctr-prepare" in capsys.readouterr().err


def test_an_experiment_of_another_size_is_rejected(root: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copy_to_change(root / "run", copied)
    document = json.loads((copied / EXPERIMENT).read_text())
    document["model"]["embedding"] = 16
    (copied / EXPERIMENT).write_bytes(msgspec.json.encode(document))
    with pytest.raises(ValueError, match="do not belong together"):
        open_run(copied)


@pytest.mark.parametrize("name", [WEIGHTS, METRICS, "vocabulary"])
def test_a_file_that_may_not_be_read_is_reported_with_the_missing_permission(root: Path, name: str) -> None:
    with public_folder() as folder:
        run = folder / "run"
        copy_to_change(root / "run", run)
        run.chmod(0o755)
        (run / name).chmod(0)
        with another_user(), pytest.raises((ValueError, PermissionError)) as error:
            open_run(run)
        (run / name).chmod(0o755)
    message = describe(error.value)
    assert "may not" in message
    assert str(run / name) in message
    assert "Train again" not in message


def change_a_weight(run: Path) -> None:
    weights = load_file(run / WEIGHTS)
    save_file(weights | {"head.0.bias": weights["head.0.bias"] + 1}, run / WEIGHTS)


def reverse_the_fields(run: Path) -> None:
    schema = read_schema(run / SCHEMA)
    write_schema(FeatureSchema(schema.fields[::-1]), run / SCHEMA)


def change_a_vocabulary(run: Path) -> None:
    shutil.copyfile(run / "vocabulary" / "ad.marisa", run / "vocabulary" / "user.marisa")


@pytest.mark.parametrize("change", [change_a_weight, reverse_the_fields, change_a_vocabulary])
def test_a_run_that_was_changed_is_rejected(root: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    shutil.copytree(root / "run", tmp_path / "run")
    open_run(tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(ValueError, match="is not what training wrote"):
        open_run(tmp_path / "run")


def test_the_error_for_weights_of_another_size_names_them(root: Path, tmp_path: Path) -> None:
    copy_to_change(root / "run", tmp_path / "run")
    weights = load_file(tmp_path / "run" / WEIGHTS)
    save_file(weights | {"head.0.bias": torch.zeros(7)}, tmp_path / "run" / WEIGHTS)
    with pytest.raises(ValueError, match=r"do not belong together \(.*head\.0\.bias"):
        open_run(tmp_path / "run")


def test_weights_that_are_not_finite_are_rejected(root: Path, tmp_path: Path) -> None:
    copy_to_change(root / "run", tmp_path / "run")
    weights = load_file(tmp_path / "run" / WEIGHTS)
    save_file(weights | {"head.0.bias": torch.tensor([float("nan")])}, tmp_path / "run" / WEIGHTS)
    with pytest.raises(ValueError, match="not finite"):
        open_run(tmp_path / "run")


def test_running_out_of_memory_and_an_unwritable_folder_are_reported_in_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large.toml"
    large.write_text((root / TINY).read_text().replace("embedding = 8", "embedding = 1000000000000"))
    (tmp_path / "file").write_text("")
    for toml, out, words in [(large, tmp_path / "run", "memory"), (root / TINY, tmp_path / "file" / "run", "file")]:
        monkeypatch.setattr("sys.argv", ["ctr-train", str(toml), "--data", str(root), "--out", str(out)])
        assert main() == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert words in said[0]


@pytest.mark.parametrize("lost", ["experiment.json", "weights.safetensors", "schema.json"])
def test_a_run_with_a_missing_file_is_rejected(root: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(root / "run", tmp_path / "run")
    (tmp_path / "run" / lost).unlink()
    with pytest.raises(ValueError, match="Train again"):
        open_run(tmp_path / "run")


def test_broken_weights_are_rejected(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "run", tmp_path / "run")
    (tmp_path / "run" / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="Train again"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train.ids.npy", lambda a: a[:, :-1]),
        ("train.ids.npy", lambda a: a.astype(np.float32)),
        ("train.ids.npy", lambda a: a[:-1]),
        ("train.ids.npy", lambda a: a + 10_000),
        ("train.ids.npy", lambda a: a - 100),
        ("valid.labels.npy", lambda a: a * 2),
        ("test.values.npy", lambda a: a[:, 0]),
    ],
)
def test_a_prepared_log_that_was_changed_is_rejected_before_training(
    root: Path, tmp_path: Path, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    shutil.copytree(root / "prepared", tmp_path / "prepared")
    np.save(tmp_path / "prepared" / name, change(np.load(root / "prepared" / name)))
    with pytest.raises(ValueError, match="Run ctr-prepare again"):
        train(read_experiment(root / TINY), tmp_path, tmp_path / "run")


def test_an_empty_prepared_file_is_an_error_that_names_it(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "prepared", tmp_path / "prepared")
    (tmp_path / "prepared" / "train.ids.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.ids\.npy: .*Run ctr-prepare again"):
        train(read_experiment(root / TINY), tmp_path, tmp_path / "run")


def test_data_prepared_for_another_experiment_is_rejected(root: Path, tmp_path: Path) -> None:
    experiment = read_experiment(root / TINY)
    other = msgspec.structs.replace(experiment, data=msgspec.structs.replace(experiment.data, min_count=2))
    with pytest.raises(ValueError, match="ctr-prepare again"):
        train(other, root, tmp_path / "run")


def test_runs_of_two_experiments_cannot_be_reported_together(root: Path) -> None:
    experiment = read_experiment(root / TINY)
    with pytest.raises(ValueError, match="its own seed"):
        check_one_experiment([experiment, experiment])
    second = msgspec.structs.replace(experiment.training, seed=2, epochs=9)
    with pytest.raises(ValueError, match="different experiments"):
        check_one_experiment([experiment, msgspec.structs.replace(experiment, training=second)])


def test_runs_of_two_logs_cannot_be_reported_together() -> None:
    one, other = DataFacts({"train": 3}, "f00d"), DataFacts({"train": 4}, "beef")
    assert check_one_log([one, one]) == one
    assert check_one_log([one, None]) is None
    with pytest.raises(ValueError, match="differently prepared data"):
        check_one_log([one, other])


def test_a_folder_without_metrics_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=METRICS):
        open_run(tmp_path)


def test_the_report_has_versions_and_a_comparison_with_the_true_probabilities(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = root / "report"
    monkeypatch.setattr("sys.argv", ["report", str(root / "run"), "--out", str(out)])
    assert report_main() == 0
    report = json.loads(out.with_suffix(".json").read_text())
    _, _, _, metrics = open_run(root / "run")
    assert report["test_auc_mean"] == metrics.test.auc
    assert report["seeds"] == [1]
    assert report["data"]["fingerprint"] == fingerprint(root / "prepared")
    assert report["data"]["rows"]["train"] > 0
    truth = report["beside_true_probability"][0]
    assert truth["true_auc"] > truth["auc"]
    assert len(truth["tenths"]) == 10
    assert np.isfinite(truth["tenths"]).all()
    text = out.with_suffix(".md").read_text()
    assert f"torch {torch.__version__}".split("+")[0] in text
    assert "one seed" in text


CHILD = """
import resource, sys
from pathlib import Path
from model.experiments.run_folder import open_run, save_run
run, out = map(Path, sys.argv[1:])
model, experiment, schema, metrics = open_run(run)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    save_run(out, experiment, model, schema, run / "vocabulary", metrics)
except OSError as error:
    print(error)
"""


def test_a_full_disk_leaves_no_partial_run_and_the_error_names_the_folder(root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, root / "run", tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert f"{tmp_path / 'out'}: the run could not be written, and the partial output was removed" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("split", "value"), [("train", 0), ("valid", 1), ("test", 0)])
def test_a_split_of_one_class_is_rejected_before_training(root: Path, tmp_path: Path, split: str, value: int) -> None:
    shutil.copytree(root / "prepared", tmp_path / "prepared")
    path = tmp_path / "prepared" / f"{split}.labels.npy"
    np.save(path, np.full_like(np.load(path), value))
    with pytest.raises(ValueError, match=f"prepared: {split} has only clicks or no clicks"):
        train(read_experiment(root / TINY), tmp_path, tmp_path / "run")


def test_an_empty_split_is_rejected_before_training(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "prepared", tmp_path / "prepared")
    for column in ("ids", "values", "labels"):
        path = tmp_path / "prepared" / f"valid.{column}.npy"
        np.save(path, np.load(path)[:0])
    with pytest.raises(ValueError, match="prepared: valid has no rows"):
        train(read_experiment(root / TINY), tmp_path, tmp_path / "run")
