"""Check a new bundle in a separate process, so that requests are not delayed."""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from contract.bundle import MANIFEST

MAX_CHECK_S = 600.0
NICENESS = 19


async def check(folder: Path, vocabulary: str) -> str | None:
    """Run ctr-verify on a bundle. Return what is wrong with its files, graphs or golden requests, or None.

    Args:
        folder: The bundle's folder.
        vocabulary: "redis" if the bundle may have no vocabulary. In that case, its golden requests are not checked.
    """
    command = [sys.executable, "-m", "service.models.verify", str(folder)]
    command += ["--without-vocabulary"] if vocabulary == "redis" else []
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    with suppress(OSError):  # The process has already exited, or a sandbox forbids the change.
        # The check gets only the CPU time that the workers do not use.
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
    try:
        _, errors = await asyncio.wait_for(process.communicate(), MAX_CHECK_S)
    except TimeoutError:
        return f"the check of {folder.name} took longer than {MAX_CHECK_S:g} s"
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode == 0:
        return None
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("ctr-verify: ") if lines else f"the check exited with code {process.returncode}"


def version_of(folder: Path) -> str:
    """Return the version in a bundle's manifest, or an empty string if it cannot be read.

    The manifest is not verified here. A bundle is verified before it is served.
    """
    try:
        return str(msgspec.json.decode((folder / MANIFEST).read_bytes(), type=dict[str, Any]).get("version", ""))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ""
