"""The CPU quota of the process's cgroup and the cgroups above it, in the layouts of common container runtimes."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from contract.cpu_quota import THREAD_VARIABLES, available_cpus, cpu_quota, limit_threads

V2 = "cgroup2 cgroup2 rw"
V1_CPU = "cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "cgroup cgroup rw,memory"


@dataclass(frozen=True)
class Layout:
    """A machine's cgroups.

    Attributes:
        cgroup: The content of /proc/self/cgroup.
        mounts: Folder below /sys/fs/cgroup -> root of the mounted hierarchy, and its type and options.
        quotas: Folder -> quota in CPUs. None means that the file specifies no limit.
    """

    cgroup: str
    mounts: dict[str, tuple[str, str]]
    quotas: dict[str, float | None] = field(default_factory=dict)


V1_MOUNTS = {"cpu,cpuacct": ("/", V1_CPU), "memory": ("/", V1_MEMORY)}
IN_V1_CONTAINER = {"cpu,cpuacct": ("/kubepods/pod1/abc", V1_CPU), "memory": ("/kubepods/pod1/abc", V1_MEMORY)}
UNIT_FOLDER = "system.slice/ctr.service"
UNIT = f"0::/{UNIT_FOLDER}\n"
POD = "4:memory:/kubepods/pod1/abc\n3:cpu,cpuacct:/kubepods/pod1/abc\n1:name=systemd:/kubepods/pod1/abc\n"
SLURM = "9:cpuacct,cpu:/slurm/uid_1/job_2/step_0\n8:memory:/slurm/uid_1/job_2/step_0\n"

LAYOUTS = {
    "v2: own cgroup": (Layout(UNIT, {"": ("/", V2)}, {UNIT_FOLDER: 2.0}), 2.0),
    "v2: slice above": (Layout(UNIT, {"": ("/", V2)}, {UNIT_FOLDER: None, "system.slice": 1.5}), 1.5),
    "v2: tightest of both": (Layout(UNIT, {"": ("/", V2)}, {UNIT_FOLDER: 4.0, "system.slice": 3.0}), 3.0),
    "v2: another cgroup's quota": (Layout(UNIT, {"": ("/", V2)}, {"system.slice/other.service": 1.0}), None),
    "v2: container with its own namespace": (Layout("0::/\n", {"": ("/", V2)}, {"": 0.5}), 0.5),
    "v2: namespace entered from outside": (Layout("0::/../other\n", {"": ("/", V2)}, {"": 2.0}), 2.0),
    "v2: without a namespace": (Layout("0::/kubepods/pod1\n", {"": ("/kubepods/pod1", V2)}, {"": 2.0}), 2.0),
    "v1: nested job": (Layout(SLURM, V1_MOUNTS, {"cpu,cpuacct/slurm/uid_1/job_2": 3.0}), 3.0),
    "v1: root": (Layout(SLURM, V1_MOUNTS, {"cpu,cpuacct": 2.0}), 2.0),
    "v1: container": (Layout(POD, IN_V1_CONTAINER, {"cpu,cpuacct": 1.0}), 1.0),
    "v1: no limit": (Layout(POD, IN_V1_CONTAINER, {"cpu,cpuacct": None}), None),
    "v1: a container's quota and the mount of the host": (
        Layout(POD, V1_MOUNTS, {"cpu,cpuacct/kubepods/pod1": 2.0, "cpu,cpuacct/kubepods/pod1/abc": 1.5}),
        1.5,
    ),
    "both: CPU in v1": (
        Layout(f"{POD}0::/kubepods/pod1/abc\n", {**V1_MOUNTS, "unified": ("/", V2)}, {"cpu,cpuacct/kubepods": 2.0}),
        2.0,
    ),
    "a mount with a space": (Layout("0::/a\n", {"a b": ("/", V2)}, {"a b/a": 2.0}), 2.0),
    "no cgroups": (Layout("", {}), None),
}


def write(layout: Layout, folder: Path) -> Path:
    """Write the layout's files, and return the folder that stands for /proc/self."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    proc.mkdir()
    (proc / "cgroup").write_text(layout.cgroup)
    mounts = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
    for mount, (root, file_system) in layout.mounts.items():
        (cgroups / mount).mkdir(parents=True, exist_ok=True)
        escaped = str(cgroups / mount).replace(" ", "\\040")
        mounts.append(f"30 22 0:26 {root} {escaped} rw,nosuid shared:4 - {file_system}")
    (proc / "mountinfo").write_text("\n".join(mounts) + "\n")
    for name, cpus in layout.quotas.items():
        target = cgroups / name
        target.mkdir(parents=True, exist_ok=True)
        if "cpu,cpuacct" in name:
            (target / "cpu.cfs_quota_us").write_text("-1\n" if cpus is None else f"{int(cpus * 50_000)}\n")
            (target / "cpu.cfs_period_us").write_text("50000\n")
        else:
            (target / "cpu.max").write_text("max 100000\n" if cpus is None else f"{int(cpus * 100_000)} 100000\n")
    return proc


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_tightest_quota_on_the_process_s_path_applies(tmp_path: Path, name: str) -> None:
    layout, cpus = LAYOUTS[name]
    assert cpu_quota(write(layout, tmp_path)) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [(0.5, 1), (1.0, 1), (1.9, 1), (2.0, 2), (3.5, 3), (64.0, 4), (None, 4)])
def test_a_quota_is_rounded_down_and_cannot_exceed_the_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert available_cpus(write(Layout("0::/a\n", {"": ("/", V2)}, {"a": quota}), tmp_path)) == cpus


@pytest.mark.parametrize("text", ["nonsense", "", "max", "1 0\n1", "-5 100000"])
def test_an_unreadable_quota_is_no_quota(tmp_path: Path, text: str) -> None:
    proc = write(Layout("0::/a\n", {"": ("/", V2)}, {"a": 1.0}), tmp_path)
    (tmp_path / "cgroup" / "a" / "cpu.max").write_text(text)
    assert cpu_quota(proc) is None


@pytest.mark.parametrize("name", ["cgroup", "mountinfo"])
@pytest.mark.parametrize("text", [None, "nonsense\n"])
def test_unreadable_process_files_mean_no_quota(tmp_path: Path, name: str, text: str | None) -> None:
    proc = write(Layout("0::/a\n", {"": ("/", V2)}, {"a": 1.0}), tmp_path)
    (proc / name).unlink()
    if text is not None:
        (proc / name).write_text(text)
    assert cpu_quota(proc) is None


def test_libraries_get_the_quota_as_their_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # The user's choice.
    limit_threads(write(Layout("0::/a\n", {"": ("/", V2)}, {"a": 2.5}), tmp_path))
    assert [os.environ[name] for name in THREAD_VARIABLES] == ["1", "2", "2", "2"]


def test_without_a_quota_the_libraries_choose_their_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    limit_threads(write(Layout("0::/a\n", {"": ("/", V2)}), tmp_path))
    assert not any(name in os.environ for name in THREAD_VARIABLES)
