"""runs.jsonl contains only complete lines, whatever happens to the processes that write it."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from model.data_config import SplitByTime
from model.experiments.run_registry import RunList, claim, digest
from tests.support.runs import NUMBERS, experiment, run, trained_with


@pytest.fixture
def runs(tmp_path: Path) -> RunList:
    return RunList(tmp_path / "experiments" / "runs.jsonl")


def test_a_run_is_read_as_it_was_written(runs: RunList) -> None:
    assert runs.read() == []
    runs.append(run(1))
    runs.append(run(2))
    assert runs.read() == [run(1), run(2)]


def test_a_run_is_found_by_its_settings_seed_and_data_and_not_by_its_name(runs: RunList) -> None:
    runs.append(run(1))
    renamed = msgspec.structs.replace(experiment(1), name="y")
    assert runs.find(renamed, "f00d") == run(1)
    assert runs.find(experiment(2), "f00d") is None
    assert runs.find(experiment(1, embedding=32), "f00d") is None
    assert runs.find(experiment(1), "other data") is None


def test_a_key_that_is_missing_in_an_older_run_has_its_default(runs: RunList) -> None:
    runs.append(run(1))
    text = runs.path.read_text()
    assert '"clip":10.0,' in text
    runs.path.write_text(text.replace('"clip":10.0,', ""))
    assert runs.find(experiment(1), "f00d") is not None


def test_a_run_without_a_model_type_belongs_to_stec(runs: RunList) -> None:
    runs.append(run(1))
    text = runs.path.read_text()
    assert '"type":"stec",' in text
    runs.path.write_text(text.replace('"type":"stec",', ""))
    assert runs.read() == [run(1)]


def test_the_digest_covers_everything_except_name_and_seed() -> None:
    assert digest(experiment(1)) == digest(msgspec.structs.replace(experiment(2), name="y"))
    assert digest(experiment(1)) != digest(experiment(1, embedding=32))


def test_the_digest_of_version_0_9_is_unchanged_unless_a_newer_key_is_set() -> None:
    """Otherwise, checkpoints of that version would not be found."""
    assert digest(experiment(1)) == "cc7f12271d4d378f"  # computed by version 0.9
    for newer in ({"embedding_norm": "rms"}, {"layer_norm_eps": 5.0}, {"level_eps_relative": 0.01}):
        assert digest(experiment(1, **newer)) != digest(experiment(1))
    for changes in ({"ema_half_life": 1.0}, {"learning_rate_factor": 1.0}, {"evaluations_per_epoch": 2}):
        assert digest(trained_with(experiment(1), **changes)) != digest(experiment(1))


def test_the_digest_of_version_0_11_is_unchanged_unless_a_newer_key_of_data_is_set() -> None:
    split = SplitByTime(valid="1d", test="1d")
    data = msgspec.structs.replace(NUMBERS, files="all.csv", train="", valid="", test="", split=split, time="day")
    plain = msgspec.structs.replace(experiment(1), data=data)
    assert digest(plain) == "0b15545e2d058d4d"  # from version 0.11
    for key, value in {
        "train_negative_rate": 0.1,
        "position": "position",
        "split": msgspec.structs.replace(split, train="7d"),
    }.items():
        changed = msgspec.structs.replace(plain, data=msgspec.structs.replace(data, **{key: value}))
        assert digest(changed) != digest(plain)


@pytest.mark.parametrize("length", [1, 100, -2, -1])
def test_an_incomplete_last_line_is_ignored_and_then_removed(runs: RunList, length: int) -> None:
    runs.append(run(1))
    whole = runs.path.read_bytes()
    runs.path.write_bytes(whole + whole[:length])
    assert runs.read() == [run(1)]
    runs.append(run(2))
    assert runs.read() == [run(1), run(2)]


def test_a_broken_line_is_an_error_that_names_it(runs: RunList) -> None:
    runs.append(run(1))
    runs.path.write_bytes(b"{}\n" + runs.path.read_bytes())
    with pytest.raises(ValueError, match=r"runs\.jsonl:1: .*Fix or remove the line"):
        runs.read()


def append_many(path: Path, first: int) -> None:
    for seed in range(first, first + 25):
        RunList(path).append(run(seed))


# A forked process does not have to import torch again. Forking is safe here, because the forked code acquires no lock
# that another thread could hold.
FORK = multiprocessing.get_context("fork")
may_fork = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@may_fork
def test_processes_that_append_concurrently_lose_no_runs(runs: RunList) -> None:
    writers = [FORK.Process(target=append_many, args=(runs.path, first)) for first in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(r.metrics.seed for r in runs.read()) == [*range(25), *range(100, 125)]


def append_on_a_full_disk(path: Path) -> None:
    """Append with a limit on the file size, so that the kernel truncates the write, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = path.stat().st_size + 50
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(OSError, match=r"runs\.jsonl: the disk is full"):
        RunList(path).append(run(2))


@may_fork
def test_a_full_disk_leaves_the_list_unchanged(runs: RunList) -> None:
    runs.append(run(1))
    before = runs.path.read_bytes()
    writer = FORK.Process(target=append_on_a_full_disk, args=(runs.path,))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    assert runs.path.read_bytes() == before


def test_a_claim_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "below" / "run.lock"
    with claim(path) as ours:
        assert ours
        with claim(path) as theirs:
            assert not theirs
        assert path.exists()
    assert not path.exists()
    with claim(path) as again:
        assert again


class Vanishing(type(Path())):  # type: ignore[misc]
    """A path whose file is removed just before stat(), as another process could do."""

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return True

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.suffix == ".lock":
            self.unlink(missing_ok=True)
        return super().stat(follow_symlinks=follow_symlinks)  # type: ignore[no-any-return]


def test_a_claim_on_a_file_that_was_just_removed_fails(tmp_path: Path) -> None:
    with claim(Vanishing(tmp_path / "run.lock")) as ours:
        assert not ours


def test_a_claim_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    script = (
        "import sys, time; from pathlib import Path; from model.experiments.run_registry import claim\n"
        "with claim(Path(sys.argv[1])) as ours: print(ours, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with claim(path) as ours:
            assert not ours
        os.kill(process.pid, signal.SIGKILL)
    with claim(path) as ours:
        assert ours
