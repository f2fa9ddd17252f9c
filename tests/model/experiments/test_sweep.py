"""ctr-sweep trains each point of a file once, and chooses the best one on valid."""

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from model.cli.sweep import main
from model.experiments.run_folder import OtherWeights, RunMetrics
from model.experiments.run_registry import run_list
from model.experiments.sweep import PointRuns, rank, sweep
from model.experiments.sweep_config import Point, read_sweep
from model.stec.stec import STECConfig
from model.training.metrics import Metrics
from tests.support.runs import TOML, experiment, make_root, run

FM = TOML.replace('"tiny"', '"fm"').replace("[model]\nembedding = 8\nblocks = 1\nffn = 16", '[model]\ntype = "fm"')


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TOML)
    return tmp_path / "size.toml"


def test_a_grid_gives_every_combination_and_a_point_adds_one(toml: Path) -> None:
    toml.write_text('base = "tiny.toml"\n[grid]\nembedding = [4, 16]\nnet_l2 = [0.0, 0.1]\n[[point]]\nmlp = [400]\n')
    _, [base] = read_sweep(toml)
    points = base.points
    assert [p.label for p in points] == [
        "embedding 4, net_l2 0.0",
        "embedding 4, net_l2 0.1",
        "embedding 16, net_l2 0.0",
        "embedding 16, net_l2 0.1",
        "mlp [400]",
    ]
    third, fourth = points[3].experiment.model, points[4].experiment.model
    assert isinstance(third, STECConfig)
    assert isinstance(fourth, STECConfig)
    assert (third.embedding, points[3].experiment.training.net_l2) == (16, 0.1)
    assert fourth.mlp == (400,)
    assert points[4].experiment.training == base.experiment.training
    assert points[0].experiment.name == "tiny: embedding 4, net_l2 0.0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[grid]\nembeding = [4]", '"embeding" is not a key'),
        ("[[point]]\nseed = 4", '"seed" is not a key'),
        ("[[point]]\nreader = 'frappe'", '"reader" is not a key'),
        ("[grid]\nembedding = [4, 0]", "embedding 0: .*1 or more"),
        ("[grid]\nheads = [3]", "heads 3: .*embedding = 8 cannot be split"),
        ("[[point]]\nmonitor = 'loss'", 'monitor loss: .*must be "auc" or "logloss"'),
        ("[grid]\nblocks = 2", "list"),
        ("seedz = 3\n[grid]\nblocks = [2]", "seedz"),
        ("seeds = 0\n[grid]\nblocks = [2]", "seeds"),
        ("", r"needs points. Add a \[grid\] section or \[\[point\]\]"),
        ("[grid]\nblocks = [2]\n[[point]]\nblocks = 2", "the point blocks 2 occurs twice"),
        ("[[point]]\nablation = 'STEC_XX'", "STEC_XX"),
    ],
)
def test_a_mistake_is_an_error_that_names_file_and_key(toml: Path, text: str, words: str) -> None:
    toml.write_text(f'base = "tiny.toml"\n{text}\n')
    with pytest.raises(ValueError, match=rf"size\.toml: .*{words}"):
        read_sweep(toml)


def test_a_missing_file_is_an_error_that_names_it(toml: Path) -> None:
    with pytest.raises(ValueError, match=r"size\.toml: no such sweep"):
        read_sweep(toml)
    toml.write_text('base = "huge.toml"\n[grid]\nblocks = [1]\n')
    with pytest.raises(ValueError, match=r"huge\.toml: no such experiment"):
        read_sweep(toml)


def test_every_base_has_all_points(toml: Path) -> None:
    (toml.parent / "big.toml").write_text(TOML.replace('"tiny"', '"big"'))
    toml.write_text('base = ["tiny.toml", "big.toml"]\n[grid]\nembedding = [4, 16]\n[[point]]\n')
    _, bases = read_sweep(toml)
    names = [[p.experiment.name for p in base.points] for base in bases]
    assert names == [
        [f"{name}: {point}" for point in ("embedding 4", "embedding 16", "base")] for name in ("tiny", "big")
    ]


@pytest.mark.parametrize(
    ("bases", "words"),
    [
        ('["tiny.toml", "tiny.toml"]', "an experiment twice"),
        ('["tiny.toml", "./tiny.toml"]', "an experiment twice"),
        ('["tiny.toml", "copy.toml"]', "two with the same name"),
        ('["tiny.toml", "below/other.toml"]', "files of several folders"),
        ('["tiny.toml", "fm.toml"]', r'base fm\.toml: .*"blocks" is not a key'),
        ('["tiny.toml", "other.toml"]', "Use experiments with the same log"),
        ("[]", "at least 1"),
    ],
)
def test_several_bases_must_use_the_same_log(toml: Path, bases: str, words: str) -> None:
    other = TOML.replace('"prepared"', '"other"').replace('"tiny"', '"other"')
    (toml.parent / "below").mkdir()
    for path in ("other.toml", "below/other.toml"):
        (toml.parent / path).write_text(other)
    (toml.parent / "copy.toml").write_text(TOML)
    (toml.parent / "fm.toml").write_text(FM)
    toml.write_text(f"base = {bases}\n[grid]\nblocks = [1]\n")
    with pytest.raises(ValueError, match=rf"size\.toml: .*{words}"):
        read_sweep(toml)


def measured(label: str, auc: float, runs: int) -> PointRuns:
    found = [msgspec.structs.replace(run(n), metrics=scored(run(n).metrics, auc)) for n in range(runs)]
    return PointRuns(Point(label, experiment(1)), found, seeds=2)


def scored(metrics: RunMetrics, auc: float) -> RunMetrics:
    return msgspec.structs.replace(metrics, valid=Metrics(auc, 0.3))


def test_an_incomplete_point_is_not_ranked_first() -> None:
    points = [measured("lucky", 0.9, 1), measured("poor", 0.6, 2), measured("good", 0.7, 2), measured("none", 0, 0)]
    assert [m.point.label for m in rank(points, "auc")] == ["good", "poor", "lucky", "none"]


def test_a_point_has_the_weights_that_are_better_on_valid() -> None:
    raw, better = measured("raw", 0.7, 2), Metrics(0.8, 0.4)
    other = OtherWeights("averaged", 1, 1.0, better, Metrics(0.6, 0.5))
    averaged = replace(
        raw,
        runs=[msgspec.structs.replace(r, metrics=msgspec.structs.replace(r.metrics, other=other)) for r in raw.runs],
    )
    assert raw.better_weights("auc")[0] == "raw"
    assert averaged.better_weights("auc") == ("averaged", [(better, other.test)] * 2)
    assert averaged.better_weights("logloss")[0] == "raw"  # 0.3 is less than 0.4
    assert averaged.cells("auc")[:6] == [
        "2",
        "averaged",
        "80.00 ± 0.00",
        "0.4000 ± 0.0000",
        "60.00 ± 0.00",
        "0.5000 ± 0.0000",
    ]
    one = replace(raw, runs=[raw.runs[0], averaged.runs[1]])
    assert one.better_weights("auc")[0] == "raw"  # not every run has an average


def test_a_sweep_whose_points_all_fail_chooses_none(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = root / "experiments" / "hopeless.toml"
    toml.write_text(f'base = "tiny.toml"\n[[point]]\nlearning_rate = 1e30\n[[point]]\nembedding = {2**42}\n')
    monkeypatch.setattr("sys.argv", ["ctr-sweep", str(toml), "--data", str(root)])
    assert main() == 2
    said = capsys.readouterr()
    assert "Lower training.learning_rate" in said.out
    assert f"embedding {2**42}, seed 1: " in said.out  # No machine has enough memory for this.
    assert "best on valid" not in said.out
    assert "none is chosen" in said.err
    page = (toml.parent / "results" / f"{toml.stem}.md").read_text()
    assert "none is chosen" in page
    assert page.count(" failed: ") == 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path, requests=300)


def test_points_are_trained_once_and_ranked_by_valid_and_a_failed_one_is_skipped(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = root / "experiments" / "rate.toml"
    toml.write_text(
        'base = "tiny.toml"\n[grid]\nlearning_rate = [1e-6, 0.02]\nepochs = [1]\nbatch_size = [128]\n'
        'initial_bias = ["zero"]\n'
    )
    [ranked] = sweep(toml, root)
    assert [m.point.experiment.training.learning_rate for m in ranked] == [0.02, 1e-6]
    assert capsys.readouterr().out.count(", seed 1: valid AUC") == 2
    toml.write_text(toml.read_text().replace("0.02]", "0.02, 1e30]"))
    [ranked] = sweep(toml, root)
    assert [len(m.runs) for m in ranked] == [1, 1, 0]
    assert "Lower training.learning_rate" in capsys.readouterr().out
    assert len(run_list(root / "experiments" / "tiny.toml").read()) == 2
    page = (toml.parent / "results" / f"{toml.stem}.md").read_text()
    assert "**learning_rate 0.02, epochs 1, batch_size 128, initial_bias zero**" in page
    assert re.search(r"learning_rate 1e\+30, .* failed: .*Lower training\.learning_rate", page)


def test_the_report_on_several_bases_has_a_section_and_a_choice_for_each(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "experiments" / "big.toml").write_text(TOML.replace('"tiny"', '"big"'))
    toml = root / "experiments" / "both.toml"
    toml.write_text('base = ["tiny.toml", "big.toml"]\n[grid]\nembedding = [4, 16]\nepochs = [1]\n')
    monkeypatch.setattr("sys.argv", ["ctr-sweep", str(toml), "--data", str(root)])
    assert main() == 0
    assert re.findall("best on valid: ([a-z]+): embedding", capsys.readouterr().out) == ["tiny", "big"]
    assert_page_of_both(toml)


def test_a_base_without_a_choice_is_reported(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "experiments" / "hot.toml").write_text(TOML.replace('"tiny"', '"hot"') + "learning_rate = 1e30\n")
    toml = root / "experiments" / "both.toml"
    toml.write_text('base = ["tiny.toml", "hot.toml"]\n[grid]\nepochs = [1]\n')
    monkeypatch.setattr("sys.argv", ["ctr-sweep", str(toml), "--data", str(root)])
    assert main() == 2
    said = capsys.readouterr()
    assert re.findall("best on valid: (.*)", said.out) == ["tiny: epochs 1"]
    assert "ctr-sweep: hot: no point has completed all its runs" in said.err


def assert_page_of_both(toml: Path) -> None:
    page = (toml.parent / "results" / f"{toml.stem}.md").read_text()
    assert re.findall("^## (.*)$", page, re.MULTILINE) == ["tiny", "big"]
    assert page.count("2 points around") == page.count("Chosen by valid") == 2
