"""System limits that are too low are reported at startup: open files, and memory for shared files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.models import store as stores
from service.telemetry import metrics_folder
from service.telemetry.metrics_folder import NoSpace, check_space, reserve
from tests.support.paths import ROOT
from tests.support.processes import another_bundle, get, metric, score, serving, without_settings

SERVE = [sys.executable, "-m", "service", "--workers", "2"]


def run_in_shell(limits: str, bundle: Path, *prefix: str, flag: str = "--bundle") -> subprocess.CompletedProcess[str]:
    """Run ctr-serve after a shell command that sets limits, and wait until the server exits."""
    command = [*prefix, "sh", "-c", f'{limits} && exec "$@"', "sh", *SERVE, flag, str(bundle)]
    environment = without_settings() | {"CTR_PORT": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("files", "message"),
    [(300, "CTR_MAX_CONNECTIONS=1000 needs 1"), (24, "ulimit -n"), (12, "ulimit -n")],
)
def test_too_few_open_files_are_reported(bundle: Path, files: int, message: str) -> None:
    done = run_in_shell(f"ulimit -n {files}", bundle)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_too_few_open_files_are_no_reason_to_serve_another_version(bundle: Path, tmp_path: Path) -> None:
    store, another = tmp_path / "store", another_bundle(tmp_path / "another")
    for version in (another, bundle):
        assert stores.main(["add", str(store), str(version), "--activate"]) == 0
    done = run_in_shell("ulimit -n 24", store, flag="--store")
    assert done.returncode == 2
    assert "ulimit -n" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Falling back" not in done.stderr


def test_a_soft_limit_of_open_files_is_raised(bundle: Path) -> None:
    code = "import resource, runpy, sys; _, hard = resource.getrlimit(7); resource.setrlimit(7, (256, hard)); "
    with serving(bundle, ("-c", code + "runpy.run_module('service', run_name='__main__')"), CTR_WORKERS="1") as server:
        score(server)


def test_too_small_shared_memory_is_reported(bundle: Path) -> None:
    unshare = shutil.which("unshare")
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    probe = unshare and subprocess.run([unshare, "--mount", "sh", "-c", mount], capture_output=True)
    if not unshare or (probe and probe.returncode):
        pytest.skip("this user may not mount a small /dev/shm")
    done = run_in_shell(mount, bundle, unshare, "--mount")
    assert done.returncode == 2
    assert "shm is too small for the files that the workers share: 2 workers need" in done.stderr
    assert "--shm-size" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_files_of_a_worker_are_allocated_and_fit_into_the_space_that_is_checked(bundle: Path) -> None:
    with serving(bundle, CTR_WORKERS="1") as server:
        (folder,) = [path for path in metrics_folder.MEMORY.glob("ctr-metrics-*") if is_of(path, server.process.pid)]
        score(server)
        assert metric(server.url, 'ctr_request_seconds_count{outcome="ok"}') == 1
        files = [path for path in folder.iterdir() if path.suffix in (".db", ".hdr")]
        assert len(files) >= 8
        assert [path.name for path in files if path.stat().st_blocks * 512 < path.stat().st_size] == []
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 2 * metrics_folder.PROCESS_BYTES
        assert get(f"{server.url}/readyz").status_code == 200


def is_of(folder: Path, supervisor: int) -> bool:
    return any(path.name.endswith(f"_{supervisor}.db") for path in folder.iterdir())


def test_space_is_checked_for_all_workers(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(NoSpace, match=r"1000000000 workers need \d+ bytes, but \d+ are free\. Enlarge it"):
        check_space(tmp_path, 10**9)


def test_a_file_that_does_not_fit_is_reported(tmp_path: Path) -> None:
    status = os.statvfs(metrics_folder.MEMORY)
    path = metrics_folder.MEMORY / f"ctr-test-{os.getpid()}"
    path.mkdir()
    try:
        with pytest.raises(NoSpace, match="large needs"):
            reserve(path / "large", status.f_blocks * status.f_frsize + 1)
    finally:
        shutil.rmtree(path)
