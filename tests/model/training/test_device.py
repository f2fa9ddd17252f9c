"""Training on a device other than the CPU."""

import re
from pathlib import Path

import pytest
import torch

from model.cli.train import main
from model.experiment_config import Training, read_experiment
from model.experiments.report import merge_versions
from model.experiments.run_folder import open_run
from model.experiments.sweep import sweep
from model.experiments.train import train, train_seeds
from model.layers import Fields, embedding_parameters
from model.stec.stec import STEC, STECConfig
from model.training.checkpoint import Checkpoint, State
from model.training.device import CPU, find_device
from model.training.early_stopping import EarlyStopping, Epoch
from model.training.fit import fit
from tests.support.runs import make_root
from tests.support.stec_models import TOKENS, clicks_of_pairs

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "not a device") for name in ("gpu", "", "cpu:7", "cuda:", "cuda:x", "cuda:01", "cuda:-1")),
        ("cuda:99", "torch .* sees"),
    ],
)
def test_an_unknown_or_missing_device_is_an_error(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(name)} is .*{words}"):
        find_device(name)
    assert find_device("cpu") == CPU


def test_ctr_train_rejects_a_missing_device_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ctr-train", "any.toml", "--seeds", "1", "--device", "cuda:99"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--device: cuda:99 is not available" in capsys.readouterr().err


def test_a_report_of_runs_on_a_cpu_and_a_gpu_names_both() -> None:
    here, there = {"cpu": "A", "cores": 2}, {"cpu": "B", "cores": 2, "gpu": "C"}
    assert merge_versions([here, there]) == {"cpu": "A and B", "cores": 2, "gpu": "no and C"}


@needs_a_gpu
def test_a_gpu_trains_the_same_model_as_the_cpu(tmp_path: Path) -> None:
    root = make_root(tmp_path, requests=300)
    experiment = read_experiment(root / "experiments" / "tiny.toml")
    on_cpu = train(experiment, root, tmp_path / "cpu")
    on_gpu = train(experiment, root, tmp_path / "gpu", torch.device("cuda"))
    assert on_gpu.history[0].loss == pytest.approx(on_cpu.history[0].loss, rel=1e-3)
    assert on_gpu.test.auc == pytest.approx(on_cpu.test.auc, abs=0.01)
    model, *_ = open_run(tmp_path / "gpu")
    assert all(parameter.device == CPU for parameter in model.parameters())
    assert '"gpu"' in (tmp_path / "gpu" / "versions.json").read_text()


@needs_a_gpu
def test_seeds_and_a_sweep_are_trained_on_the_gpu(tmp_path: Path) -> None:
    root, gpu = make_root(tmp_path, requests=300), torch.device("cuda")
    toml = root / "experiments" / "tiny.toml"
    (run,) = train_seeds(toml, 1, root, None, gpu)
    assert "gpu" in run.versions
    (toml.parent / "size.toml").write_text('base = "tiny.toml"\n[grid]\nheads = [1]\n')
    ((point,),) = sweep(toml.parent / "size.toml", root, gpu)
    assert "gpu" in point.runs[0].versions


@needs_a_gpu
def test_a_resumed_run_on_the_gpu_has_the_same_dropout(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = fit_on_gpu(Checkpoint(tmp_path / "whole.safetensors", "whole"), epochs=3)
    torch.manual_seed(1)
    begun = Checkpoint(tmp_path / "begun.safetensors", "begun")
    fit_on_gpu(begun, epochs=1)
    torch.manual_seed(2)  # A resumed process has a different random state.
    gone_on = fit_on_gpu(begun, epochs=3)
    assert [e.loss for e in gone_on] == pytest.approx([e.loss for e in whole], rel=1e-3)
    assert finished_on_cpu(begun) == []


def with_dropout() -> STEC:
    return STEC(Fields([TOKENS] * 3), STECConfig(embedding=8, blocks=1, embedding_std=0.1, dropout=0.5))


def fit_on_gpu(checkpoint: Checkpoint, epochs: int) -> list[Epoch]:
    model = with_dropout().to("cuda")
    recipe = Training(epochs=epochs, patience=9, batch_size=256, learning_rate=0.01)
    rows = clicks_of_pairs(2000, 1), clicks_of_pairs(1000, 2)
    return fit(model, embedding_parameters(model), *rows, recipe, checkpoint=checkpoint).history


def finished_on_cpu(checkpoint: Checkpoint) -> list[Epoch]:
    model, recipe = with_dropout(), Training()
    optimizer = torch.optim.Adam(model.parameters())
    return checkpoint.restore(State(model, optimizer, torch.Generator(), EarlyStopping(recipe)))
