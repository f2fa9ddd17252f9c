"""A running ctr-serve as its operator sees it: processes, counts, a store of models."""

import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from contract.bundle import GOLDEN, Calibration, write_manifest
from contract.golden import read_golden, write_golden
from tests.support.small_bundle import SHIFT, write_small_bundle

PATIENCE_S = 30.0


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def eventually(true: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        if true():
            return
        time.sleep(0.05)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def metric(url: str, name: str) -> float:
    """The value of one series, named as the text format does."""
    text = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def served_version(url: str) -> str:
    version: str = httpx.get(f"{url}/v1/model", timeout=PATIENCE_S).json()["version"]
    return version


def with_wrong_golden(bundle: Path, folder: Path) -> Path:
    """A bundle that is whole, of a model that does not answer as it should."""
    shutil.copytree(bundle, folder)
    golden = read_golden(folder / GOLDEN)
    golden[0].ctr[0] = 0.999
    write_golden(golden, folder / GOLDEN)
    write_manifest(folder, "wrong", 1, {}, Calibration(shift=SHIFT))
    return folder


def another_bundle(folder: Path) -> Path:
    return write_small_bundle(folder, seed=1, name="another")


def sockets(pid: int) -> int:
    """How many it has open."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except OSError:  # closed meanwhile
            continue
    return sum(link.startswith("socket:") for link in links)


def without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("CTR_")}


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def a_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
