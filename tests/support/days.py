"""Simulated days, and ctr-cycle on them as a subprocess."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec

from contract.bundle import open_bundle
from contract.store import VERSIONS, read_pointer
from model.data.synthetic.traffic import Behavior, Traffic
from model.data.synthetic.traffic_files import write_days

FIRST_DAY = date(2026, 12, 1)
FIRST_S = 1_796_083_200.0
BEHAVIOR = Behavior(users=2000, late_share=0.0)
LIMITS = ("--margin", "0.2", "--tolerance", "0.9", "--segment-tolerance", "0.95")
TIMEOUT_S = 240
EXPERIMENT = """
name = "shop"

[data]
reader = "table"
folder = "joined"
prepared = "prepared"
files = ["hours/*.parquet"]
split = { by = "time", valid = "8h", test = "20h" }
time = "time"
unit = "unit"
request = "score_id"
weight = "weight"
label = "click"
context = ["age_band", "device", "slot"]
candidate = ["category", "format", "bid"]
numeric = ["bid"]

[model]
type = "lr"

[training]
epochs = 2
batch_size = 128
learning_rate = 0.02
"""


@dataclass(frozen=True)
class Site:
    """A folder with simulated logs, an experiment, a working folder and a store.

    Attributes:
        folder: The folder.
    """

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def experiment(self) -> Path:
        return self.folder / "shop.toml"

    def simulate(self, days: int, requests: int) -> None:
        """Write the logs of some days, and the experiment."""
        traffic = Traffic(3, FIRST_S, BEHAVIOR)
        write_days(traffic, days, requests, self.folder / "requests", self.folder / "events")
        self.experiment.write_text(EXPERIMENT)

    def day(self, day: date) -> Path:
        """Return the folder of a day."""
        return self.work / "days" / day.isoformat()

    def report(self, day: date) -> dict[str, Any]:
        """Return the report of a day."""
        report: dict[str, Any] = msgspec.json.decode((self.day(day) / "cycle.json").read_bytes())
        return report

    def command(self, day: date, *arguments: str, limits: tuple[str, ...] = LIMITS) -> list[str]:
        """Return the command that runs a day as if all its events had arrived."""
        folders = [f"--{name}={self.folder / name}" for name in ("requests", "events", "store")]
        until = f"{day + timedelta(days=2)}T01:00:00Z"
        command = [sys.executable, "-m", "export.cli.cycle", str(self.experiment), *folders, "--out", str(self.work)]
        return [*command, "--day", str(day), "--window", "3d", "--until", until, "--activate", *limits, *arguments]

    def run(self, day: date, *arguments: str, limits: tuple[str, ...] = LIMITS) -> "subprocess.CompletedProcess[str]":
        """Run a day to its end."""
        command = self.command(day, *arguments, limits=limits)
        return subprocess.run(command, env=one_thread(), capture_output=True, text=True, check=False, timeout=TIMEOUT_S)

    def run_until_killed(self, day: date, step: str, after_s: float) -> bool:
        """Run a day, and kill all its processes some time after a step has begun. Return whether one was killed."""
        log = self.day(day) / f"{step}.log"
        log.unlink(missing_ok=True)
        with subprocess.Popen(
            self.command(day), env=one_thread(), stdout=subprocess.DEVNULL, start_new_session=True
        ) as process:
            end_s = time.monotonic() + TIMEOUT_S
            while process.poll() is None and not log.exists() and time.monotonic() < end_s:
                time.sleep(0.005)
            time.sleep(after_s)
            was_running = process.poll() is None
            if was_running:
                os.killpg(process.pid, signal.SIGKILL)
        return was_running

    def served(self) -> str:
        """Return the version that the store serves, or ""."""
        pointer = read_pointer(self.store)
        return "" if pointer is None else pointer.version

    def check_store(self) -> set[str]:
        """Check that all versions in the store are intact, and the current one is there. Return the versions."""
        versions = {path.name for path in (self.store / VERSIONS).glob("*")}
        for version in versions:
            assert open_bundle(self.store / VERSIONS / version).manifest.version == version
        assert self.served() in {"", *versions}
        return versions

    def contents(self, day: date) -> Mapping[str, bytes]:
        """Return the files that a day leaves, without times, logs and the path of this folder."""
        files = {}
        for path in sorted(self.day(day).rglob("*")):
            if path.is_file() and path.suffix not in (".log", ".png", ".lock"):
                files[str(path.relative_to(self.day(day)))] = without_times(path.read_bytes(), self.folder)
        return files


def without_times(content: bytes, folder: Path) -> bytes:
    """Replace what may differ between two runs of the same day."""
    for pattern in (
        rb'"(seconds|wall_s|rows_per_s|digest|inputs|total_s)": ?[^,}\n]+',
        rb"20[0-9-]{8}T[0-9:.]{8,15}\+00:00",
        rb'"[^"]*(manifest|metrics|gate|digests)\.json": ?"[0-9a-f]{64}"',
        rb"\| (\w+) \| [0-9.]+ \| `\w+\.log` \|",
    ):
        content = re.sub(pattern, b"...", content)
    return content.replace(str(folder).encode(), b"")


def one_thread() -> dict[str, str]:
    """Return the environment of a deterministic training."""
    return os.environ | {"OMP_NUM_THREADS": "1"}
