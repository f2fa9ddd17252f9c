"""Whether a new bundle may be served: found by a process of its own, so that nobody waits for it."""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from contract.bundle import MANIFEST

LONGEST_S = 600.0
NICENESS = 19


async def check(folder: Path, vocabulary: str) -> str | None:
    """What is wrong with a bundle: its digests, its graphs, its golden requests. None: nothing is.

    vocabulary: "redis" where the bundle may lack it, and then its golden requests are not asked here.
    """
    command = [sys.executable, "-m", "service.models.verify", str(folder)]
    command += ["--without-vocabulary"] if vocabulary == "redis" else []
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    _be_patient(process.pid)
    try:
        _, errors = await asyncio.wait_for(process.communicate(), LONGEST_S)
    except TimeoutError:
        return f"the check of {folder.name} took longer than {LONGEST_S:g} s"
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode == 0:
        return None
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("ctr-verify: ") if lines else f"the check ended with {process.returncode}"


def version_of(folder: Path) -> str:
    """As its manifest says; empty where there is none. It is verified before it is served."""
    try:
        return str(msgspec.json.decode((folder / MANIFEST).read_bytes(), type=dict[str, Any]).get("version", ""))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _be_patient(pid: int) -> None:
    """It takes what the workers leave of the CPUs."""
    with suppress(OSError):  # it has ended, or a sandbox does not allow it
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
