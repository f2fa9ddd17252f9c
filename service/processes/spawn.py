"""Starts a worker's process: what it inherits, and what its command line says."""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TESTED = "--tested"  # it takes connections only when it has passed its test


async def spawn(
    listeners: Sequence[socket.socket], folder: Path, place: int, options: Sequence[str]
) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """The process, and our end of the socket that it is told things by. Raises OSError."""
    own, theirs = socket.socketpair()
    descriptors = [listener.fileno() for listener in listeners]
    command = [sys.executable, "-m", "service.processes.worker", "--listener", str(descriptors[0])]
    command += ["--control", str(theirs.fileno()), "--place", str(place)]
    command += ["--admin-listener", str(descriptors[1])] if len(descriptors) > 1 else []
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            *options,
            pass_fds=[*descriptors, theirs.fileno()],
            start_new_session=True,  # Ctrl-C in a terminal is for the supervisor, which ends the workers in order
            env={**_without_model(os.environ), "CTR_BUNDLE": str(folder)},
        )
    except OSError:
        own.close()
        raise
    finally:
        theirs.close()
    return process, own


def _without_model(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.upper() not in ("CTR_STORE", "CTR_BUNDLE")}
