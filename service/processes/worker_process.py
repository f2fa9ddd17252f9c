"""The supervisor's view of a worker: a process, and a channel to it."""

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from service.processes.ipc import Channel, CurrentRefused, Load, PeerClosed

LOAD_TIMEOUT_S = 120.0
BAD_BUNDLE = 3  # A worker's exit code: the bundle cannot be served.
WAIT_FOR_TEST = "--tested"  # A worker's option: accept no connections until the self-test has passed.


@dataclass(eq=False)
class WorkerProcess:
    """A worker.

    Attributes:
        process: The worker's process.
        channel: The channel for messages to and from the worker.
        started_s: When the worker was started, on the clock of `time.monotonic`.
        folder: The bundle that the supervisor assigned to the worker.
        slot: The worker's slot in ConnectionCounts.
        version: The version that the worker has reported that it serves. Empty until the worker is ready.
        ready: Set when the worker accepts requests.
    """

    process: asyncio.subprocess.Process
    channel: Channel
    started_s: float
    folder: Path
    slot: int
    version: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def load(self, folder: Path) -> str | None:
        """Make the worker serve a bundle that has been checked.

        Returns:
            Why the worker cannot serve the bundle, or None. A worker that does not reply is killed. In that case, None
            is returned as well, because the worker's replacement starts with the right bundle.
        """
        try:
            reply = await self.channel.request(Load(str(folder)), LOAD_TIMEOUT_S)
        except PeerClosed:
            self.kill()
            return None
        if reply.problem is None:
            self.folder, self.version = folder, reply.text
        return reply.problem

    def report_refused(self, version: str | None) -> None:
        """Tell the worker which current version of the store was refused, if any."""
        with suppress(PeerClosed):
            self.channel.send(CurrentRefused(version))

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()


async def spawn(
    listeners: Sequence[socket.socket], folder: Path, slot: int, options: Sequence[str]
) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """Start a worker process.

    Args:
        listeners: The socket for requests, and the one for /admin if there is one.
        folder: The bundle to serve.
        slot: The worker's slot in ConnectionCounts.
        options: Further command-line options of service/processes/worker.py.

    Returns:
        The process, and the supervisor's end of the channel's socket pair.

    Raises:
        OSError: The process cannot be started.
    """
    own, theirs = socket.socketpair()
    descriptors = [listener.fileno() for listener in listeners]
    command = [sys.executable, "-m", "service.processes.worker", "--listener", str(descriptors[0])]
    command += ["--control", str(theirs.fileno()), "--slot", str(slot)]
    command += ["--admin-listener", str(descriptors[1])] if len(descriptors) > 1 else []
    # A worker always gets the folder of a bundle, because the supervisor resolves CTR_STORE.
    environment = {name: value for name, value in os.environ.items() if name.upper() not in ("CTR_STORE", "CTR_BUNDLE")}
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            *options,
            pass_fds=[*descriptors, theirs.fileno()],
            # Ctrl-C in a terminal signals the whole session, but the supervisor stops the workers in order.
            start_new_session=True,
            env={**environment, "CTR_BUNDLE": str(folder)},
        )
    except OSError:
        own.close()
        raise
    finally:
        theirs.close()
    return process, own
