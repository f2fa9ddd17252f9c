"""ctr-train states how much memory it needs, and refuses to start a run that cannot fit."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from model.data.prepare.prepare import prepare
from model.experiment_config import read_experiment
from model.experiments.memory_limits import Limit, cgroup_limits, tightest_limit
from model.experiments.memory_plan import MemoryPlan, check_memory, measure_model, plan_memory
from model.layers import Fields
from model.zoo import MODELS, build
from tests.support.models import FIELDS, SMALL, small
from tests.support.runs import experiment, trained_with
from tests.support.stec_models import clicks_of_pairs

PLAN = MemoryPlan(process=500_000_000, parameters=10**9, model=8_000_000_000, activations=400_000_000, log=100_000_000)


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_parameters_is_that_of_the_whole_model(name: str) -> None:
    state = torch.get_rng_state()
    size = measure_model(FIELDS, small(name))
    assert torch.equal(torch.get_rng_state(), state)
    assert size.parameters == sum(p.numel() for p in build(FIELDS, small(name)).parameters())
    assert size.step > size.evaluation > 0 or name == "lr"
    assert SMALL[name] is not None


def test_a_large_vocabulary_is_counted_but_not_allocated() -> None:
    config, _ = MODELS["fm"]
    assert measure_model(Fields([10**12, 5]), config(embedding=16)).parameters == (10**12 + 5) * 17 + 1  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("limit", "outcome"), [(20_000_000_000, "fits"), (10_000_000_000, "warning"), (8_999_999_999, "refused")]
)
def test_a_run_that_cannot_fit_is_refused_and_one_that_barely_fits_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, limit: int, outcome: str
) -> None:
    monkeypatch.setattr("model.experiments.memory_plan.tightest_limit", lambda: Limit("the cgroup", limit))
    if outcome == "refused":
        with pytest.raises(ValueError, match=r"needs about 9\.0 GB .*Lower model\.embedding or raise min_count"):
            check_memory(PLAN)
    else:
        warning = check_memory(PLAN)
        assert (warning is None) == (outcome == "fits")


@pytest.mark.parametrize("net_l2", [0.0, 0.1])
def test_the_estimate_counts_the_average_and_the_best_of_the_other_weights(net_l2: float) -> None:
    train = clicks_of_pairs(100, 1)
    plans = [
        plan_memory(trained_with(experiment(1), net_l2=net_l2, ema_half_life=half_life), Fields([10**6] * 3), train, 10)
        for half_life in (0.0, 1.0)
    ]
    assert plans[1].model - plans[0].model == pytest.approx(4 * 4 * plans[0].parameters, rel=1e-6)


def cgroup(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def write_process(proc: Path, cgroups: str, mounts: str) -> None:
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(cgroups)
    (proc / "self" / "mountinfo").write_text(mounts)


def test_the_limit_of_a_parent_cgroup_counts_without_the_page_cache(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    write_process(proc, "0::/slice/job\n", f"30 22 0:26 / {root} rw - cgroup2 cgroup2 rw\n")
    cgroup(root / "slice", memory__max=1000, memory__current=700, memory__stat="anon 300\ninactive_file 400")
    cgroup(root / "slice" / "job", memory__max="max", memory__current=10)
    assert [limit.size for limit in cgroup_limits(100, proc)] == [1000 - (700 - 400 - 100)]


def test_a_cgroup_of_version_1_and_the_root_of_a_container_are_found(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    mount = f"30 22 0:26 /docker/abc {root / 'memory'} rw - cgroup cgroup rw,memory\n"
    write_process(proc, "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n", mount)
    cgroup(
        root / "memory", memory__limit_in_bytes=4000, memory__usage_in_bytes=50, memory__stat="total_inactive_file 0"
    )
    assert [limit.size for limit in cgroup_limits(50, proc)] == [4000]
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 2 kB\n")
    (proc / "self" / "status").write_text("VmSize:\t 8 kB\nVmRSS:\t 1 kB\n")
    assert tightest_limit(proc) == Limit("the machine's available memory", 3 * 1024)


TOML = """
name = "ids"
[data]
reader = "table"
folder = "log"
prepared = "prepared"
train = "train.parquet"
valid = "valid.parquet"
test = "test.parquet"
context = ["user"]
candidate = ["ad"]
[model]
embedding = {embedding}
{model}
[training]
epochs = 2
batch_size = 4096
embedding_l2 = {l2}
ema_half_life = {half_life}
"""
CHILD = """
import re, resource, sys
from model.cli.train import main
code = main(sys.argv[2:])
print("peak", int(re.search(r"VmHWM:\\\\s+(\\\\d+)", open("/proc/self/status").read()).group(1)) * 1024)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared log with 60,000 users."""
    root, random = tmp_path_factory.mktemp("ids"), np.random.default_rng(0)
    (root / "log").mkdir()
    for name, rows in (("train", 60_000), ("valid", 2_000), ("test", 2_000)):
        user, ad = np.arange(rows).astype(str), random.integers(0, 50, rows).astype(str)
        label = (random.random(rows) < 0.1).astype(int)
        pl.DataFrame({"user": user, "ad": ad, "label": label}).write_parquet(root / "log" / f"{name}.parquet")
    (root / "ids.toml").write_text(TOML.format(embedding=8, model="", l2=0.0, half_life=0))
    prepare(root, read_experiment(root / "ids.toml").data)
    return root


@pytest.mark.parametrize(
    ("embedding", "model", "l2", "half_life"),
    [
        pytest.param(256, 'type = "fm"', 0.01, 0, id="fm", marks=pytest.mark.full),
        pytest.param(256, 'type = "fm"', 0.01, 1, id="fm-averaged", marks=pytest.mark.full),
        pytest.param(128, "blocks = 1", 0.0, 0, id="stec"),
        pytest.param(128, "blocks = 1", 0.0, 1, id="stec-averaged", marks=pytest.mark.full),
    ],
)
def test_the_estimate_is_within_a_quarter_of_the_measured_peak(
    ids: Path, tmp_path: Path, embedding: int, model: str, l2: float, half_life: float
) -> None:
    toml = tmp_path / "ids.toml"
    toml.write_text(TOML.format(embedding=embedding, model=model, l2=l2, half_life=half_life))
    arguments = [str(toml), "--data", str(ids), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", CHILD.replace("\\\\", "\\"), "", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stated = re.search(r"^training needs about ([\d.]+) (GB|MB)", done.stdout, re.MULTILINE)
    measured = re.search(r"^peak (\d+)", done.stdout, re.MULTILINE)
    assert stated is not None
    assert measured is not None
    estimate = float(stated[1]) * {"GB": 1e9, "MB": 1e6}[stated[2]]
    assert estimate == pytest.approx(int(measured[1]), rel=0.25)


def test_a_run_above_the_limit_on_the_address_space_is_refused_in_one_line(ids: Path, tmp_path: Path) -> None:
    toml = tmp_path / "ids.toml"
    toml.write_text(TOML.format(embedding=4096, model='type = "fm"', l2=0.0, half_life=0))
    child = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (6 * 10**9, 6 * 10**9))\n" + CHILD
    arguments = [str(toml), "--data", str(ids), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", child.replace("\\\\", "\\"), "", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert re.match(r"ctr-train: training needs about \d+\.\d GB .*\(ulimit -v\).*Lower model\.embedding", line), line
