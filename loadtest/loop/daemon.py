"""A server process that can be killed and started again at the same address."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from loadtest.servers import START_TIMEOUT_S, STOP_TIMEOUT_S, Server, ServerFailed, free_port, without_settings


class Daemon:
    """A server of this project.

    Attributes:
        url: Its address.
    """

    def __init__(self, module: str, prefix: str, settings: Mapping[str, str], log: Path) -> None:
        """Choose a free port.

        Args:
            module: The module that `python -m` runs.
            prefix: The prefix of its settings.
            settings: Its settings, without the port. Those from this process's environment are not passed on.
            log: The file for its output.
        """
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", module]
        self._environment = {**without_settings(os.environ), **settings, f"{prefix}PORT": str(port)}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the server."""
        with self._log.open("ab") as log:
            # In its own session, so that Ctrl-C in a terminal does not reach it.
            self._process = subprocess.Popen(  # noqa: S603
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Wait until the server is ready.

        Raises:
            ServerFailed: It exited, or was not ready in time. The message shows the end of its log.
        """
        assert self._process is not None
        end_s = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < end_s:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=2):  # noqa: S310
                return
            time.sleep(0.05)
        code = self._process.poll()
        problem = f"was not ready within {START_TIMEOUT_S:g} s" if code is None else f"exited with code {code}"
        end = self._log.read_text(errors="replace")[-2000:]
        raise ServerFailed(f"{' '.join(self._command[1:])} {problem}. Its log ends with:\n{end}")

    def kill(self) -> None:
        """Kill the server and its workers with SIGKILL, so that none of them can finish its work."""
        if self._process is not None:
            workers = Server(self._process, self.url, self._log).workers()
            for pid in (self._process.pid, *workers) if self._process.poll() is None else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Stop the server with SIGTERM.

        Raises:
            ServerFailed: It exited with an error.
        """
        assert self._process is not None
        self._process.terminate()
        if (code := self._process.wait(STOP_TIMEOUT_S)) != 0:
            raise ServerFailed(f"{' '.join(self._command[1:])} exited with code {code} after SIGTERM: see {self._log}")


@contextmanager
def running(*daemons: Daemon) -> Iterator[None]:
    """Start servers, and kill those that are still running on exit."""
    try:
        for daemon in daemons:
            daemon.launch()
        for daemon in daemons:
            daemon.wait_until_ready()
        yield
    finally:
        for daemon in daemons:
            daemon.kill()
