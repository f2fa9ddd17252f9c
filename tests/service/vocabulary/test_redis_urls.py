"""All kinds of Redis URLs, and real servers: TLS, Sentinel with a failover, and a Cluster that moves its slots."""

import asyncio
import contextlib
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from pydantic import SecretStr

from contract.bundle import Bundle, open_bundle
from service.app import create_app
from service.settings import Settings, SettingsError
from service.vocabulary import publish as publishing
from service.vocabulary.publish import publish
from service.vocabulary.redis_client import check_redis_url
from service.vocabulary.tiered import TieredVocabulary
from tests.support.processes import a_free_port
from tests.support.redis_server import RedisServer, looking_up, proxy_before, redis_binary, start_redis, storm, through

WANTED = {"user": ["u1", "u7"], "item": ["4001"]}


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://u:p%2Fw@h:6399/3",
        "rediss://h/1?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=2",
        "rediss://user:pass@h:6380/1",
        "unix:///var/run/redis.sock",
        "redis+sentinel://h:26379,other,third:1/mymaster/2",
        "redis+sentinel://:secret@h/mymaster",
        "rediss+sentinel://h/mymaster?ssl_cert_reqs=none",
        "redis+cluster://user:pass@h:6379,other:6380",
        "rediss+cluster://h",
    ],
)
def test_valid_url_is_accepted(url: str) -> None:
    check_redis_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://a-secret-word@host",
        "redis://:a-secret/word@host",
        "redis://:a-secret-word@h:6399/0?foo=bar",
        "redis://:a-secret-word@h:6399/abc",
        "redis://:a-secret-word@h:6399/-1",
        "redis://:a-secret-word@h:6399?db=x",
        "redis://:a-secret-word@h:port",
        "redis://h?decode_responses=true",
        "redis+sentinel://h:26379",
        "redis+sentinel:///mymaster",
        "redis+sentinel://:secret@h/mymaster/x",
        "redis+cluster://h/mymaster",
        "redis+cluster://",
        "redis+other://h",
        "http+cluster://h",
        "redis+cluster://h:port",
        "redis+cluster://:secret@h?nonsense=1",
    ],
)
def test_invalid_url_is_refused_and_not_quoted_in_the_error(url: str) -> None:
    with pytest.raises(ValueError, match="not a valid Redis URL") as raised:
        check_redis_url(url)
    assert "secret" not in str(raised.value)


async def test_server_does_not_start_with_an_invalid_url(bundle: Path) -> None:
    app = create_app(Settings(bundle=bundle, redis_url=SecretStr("redis://:a-secret-word@h:port")))
    with pytest.raises(SettingsError, match="CTR_REDIS_URL: not a valid Redis URL") as refused:
        async with app.router.lifespan_context(app):
            pass
    assert "secret" not in str(refused.value)


async def found_in_redis(lookup: TieredVocabulary, bundle: Bundle) -> bool:
    found = await lookup.find(WANTED, 2.0)
    for field, tokens in WANTED.items():
        assert [found.lookup[field](token) for token in tokens] == [bundle.vocabularies[field](t) for t in tokens]
    return found.degraded == ()


async def eventually_found(lookup: TieredVocabulary, bundle: Bundle) -> None:
    end_s = time.monotonic() + 30
    while not await found_in_redis(lookup, bundle):
        assert time.monotonic() < end_s, "the tokens were not found in Redis within 30 s"
        await asyncio.sleep(0.1)


async def test_tls_checks_the_certificate(bundle: Path, redis_server: RedisServer, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        publish(client, opened)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with proxy_before(redis_server.port, context) as (_, port):
        url = through(redis_server, port).replace("redis://", "rediss://")
        async with looking_up(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}", opened, 1.0) as lookup:
            assert await found_in_redis(lookup, opened)
        async with looking_up(url, opened, 1.0) as lookup:  # The certificate is not trusted.
            assert not await found_in_redis(lookup, opened)


@contextmanager
def a_sentinel(folder: Path, port: int, primary: RedisServer) -> Iterator[None]:
    configuration = folder / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
        f"sentinel auth-pass mymaster {primary.password}\n"
        "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 5000\n"
    )
    command = [redis_binary(), str(configuration), "--sentinel"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: redis.Redis(port=port).ping())
            yield
        finally:
            process.kill()


def wait_for(answer: Any) -> None:
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s:
        with contextlib.suppress(redis.RedisError):
            if answer():
                return
        time.sleep(0.1)
    raise AssertionError("the condition was not met within 30 s")


async def test_client_follows_a_sentinel_failover(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_bundle(bundle)
    folders = [tmp_path / name for name in ("primary", "replica", "sentinel")]
    for folder in folders:
        folder.mkdir()
    with start_redis(folders[0], "--masterauth", "a-secret-word") as primary:
        options = ["--replicaof", f"127.0.0.1 {primary.port}", "--masterauth", primary.password]
        port = a_free_port()
        with start_redis(folders[1], *options) as replica, a_sentinel(folders[2], port, primary):
            url = f"redis+sentinel://:{primary.password}@127.0.0.1:{port}/mymaster/0"
            assert publishing.main([str(bundle), "--redis-url", url, "--keep", "1"]) == 0
            assert "published small" in capsys.readouterr().out
            with replica.client() as client:
                wait_for(lambda: client.keys("ctr:*:ready"))
            wait_for(lambda: redis.Redis(port=port, decode_responses=True).sentinel_slaves("mymaster"))
            async with looking_up(url, opened, 0.2) as lookup:
                await eventually_found(lookup, opened)
                await storm(lookup, opened)
                primary.process.kill()
                primary.process.wait()
                assert not await found_in_redis(lookup, opened)  # The lookup is degraded, but the ids are correct.
                await eventually_found(lookup, opened)
                with replica.client() as client:
                    assert client.role()[0] == b"master"


@asynccontextmanager
async def a_cluster(tmp_path: Path) -> AsyncIterator[list[RedisServer]]:
    """Start two nodes. The first one has all slots."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            options = ["--cluster-enabled", "yes", "--cluster-config-file", str(tmp_path / name / "nodes.conf")]
            # The default is the port plus 10,000, which may not be a valid port.
            options += ["--cluster-port", str(a_free_port())]
            nodes.append(stack.enter_context(start_redis(tmp_path / name, *options)))
        first, second = (stack.enter_context(node.client()) for node in nodes)
        first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        first.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port, bus_port(nodes[1]))
        wait_for(lambda: b"cluster_state:ok" in raw(first.execute_command("CLUSTER", "INFO")))
        wait_for(lambda: b"cluster_known_nodes:2" in raw(second.execute_command("CLUSTER", "INFO")))
        yield nodes


def bus_port(node: RedisServer) -> int:
    with node.client() as client:
        return int(client.config_get("cluster-port")["cluster-port"])


def raw(answer: Any) -> bytes:
    if isinstance(answer, dict):
        return b"\n".join(f"{name}:{value}".encode() for name, value in answer.items())
    return answer if isinstance(answer, bytes) else str(answer).encode()


async def test_client_follows_a_cluster_that_moves_its_slots(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_bundle(bundle)
    async with a_cluster(tmp_path) as (first, second):
        url = f"redis+cluster://:{first.password}@127.0.0.1:{first.port}"
        for _ in range(2):
            assert publishing.main([str(bundle), "--redis-url", url, "--keep", "1"]) == 0
        capsys.readouterr()
        async with looking_up(url, opened, 0.5) as lookup:
            await eventually_found(lookup, opened)
            await storm(lookup, opened)
            move_all(first, second)
            await eventually_found(lookup, opened)
            await storm(lookup, opened)


def move_all(first: RedisServer, second: RedisServer) -> None:
    """Move all keys and slots from one node to the other."""
    with first.client() as giver, second.client() as taker:
        identity = raw(taker.execute_command("CLUSTER", "MYID")).decode()
        names = [key.decode() for key in giver.keys("*")]
        slots = {int(giver.execute_command("CLUSTER", "KEYSLOT", name)) for name in names}
        for slot in slots:
            mine = raw(giver.execute_command("CLUSTER", "MYID")).decode()
            taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", mine)
            giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", identity)
        for name in names:
            giver.execute_command("MIGRATE", "127.0.0.1", second.port, name, 0, 5000, "AUTH", second.password)
        for slot in slots:
            for node in (taker, giver):
                node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", identity)
