"""A Redis by its URL: one server, one behind Sentinels, or a Cluster; with or without TLS.

    redis://[user:password@]host:port/db            rediss://... with TLS, unix:///path
    redis+sentinel://[user:password@]host:port[,host:port...]/service/db
    redis+cluster://[user:password@]host:port[,host:port...]       rediss+sentinel, rediss+cluster

What follows a `?` are redis-py's own options, such as ssl_ca_certs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from redis.asyncio import ConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.cluster import RedisCluster as AsyncCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

SENTINEL, CLUSTER = "sentinel", "cluster"
SENTINEL_PORT, PORT = 26379, 6379


@dataclass(frozen=True)
class Address:
    """What a redis+... URL says. service: the name that Sentinels know a primary by. options: redis-py's."""

    hosts: list[tuple[str, int]]
    service: str
    options: Mapping[str, Any]


def connect(url: str, timeout_s: float, most_connections: int) -> Any:
    """An asynchronous client, which connects on first use. No retries: whoever waits has milliseconds.

    Raises:
        ValueError: for a URL that is none. The message does not repeat it.
    """
    kind = _kind(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": AsyncRetry(NoBackoff(), 0),
        "protocol": 2,
    }
    if kind is None:
        return AsyncRedis.from_pool(ConnectionPool.from_url(url, max_connections=most_connections, **options))
    address = _address(url, kind)
    if kind == CLUSTER:
        # One retry, after a quarter of a second: nobody waits for it, but it is when the Cluster's slots are read anew.
        options |= {"retry": AsyncRetry(NoBackoff(), 1), "max_connections": most_connections, **address.options}
        return AsyncCluster(startup_nodes=[AsyncClusterNode(*host) for host in address.hosts], **options)
    sentinels = AsyncSentinel(address.hosts, sentinel_kwargs=_for_sentinels(address, options))
    options |= {"max_connections": most_connections, **address.options}
    return sentinels.master_for(address.service, _BehindSentinels, **options)


class _BehindSentinels(AsyncRedis):
    """Closes its connections to the Sentinels, too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        await pool.sentinel_manager.aclose()


def connect_and_wait(url: str, timeout_s: float) -> Any:
    """A synchronous client, with redis-py's own retries: for whoever has time."""
    kind = _kind(url)
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2}
    if kind is None:
        return redis.Redis.from_url(url, **options)
    address = _address(url, kind)
    if kind == CLUSTER:
        return RedisCluster(
            startup_nodes=[ClusterNode(*host) for host in address.hosts], **{**options, **address.options}
        )
    options["retry"] = Retry(NoBackoff(), 3)
    sentinels = Sentinel(address.hosts, sentinel_kwargs=_for_sentinels(address, options))
    return sentinels.master_for(address.service, **{**options, **address.options})


def _for_sentinels(address: Address, options: Mapping[str, Any]) -> dict[str, Any]:
    """Sentinels have no databases, and as a rule no password of the server's."""
    tls = {name: value for name, value in address.options.items() if name.startswith("ssl")}
    return {**options, **tls}


def _kind(url: str) -> str | None:
    scheme = urlsplit(url).scheme
    return scheme.partition("+")[2] or None


def _address(url: str, kind: str) -> Address:
    split = urlsplit(url)
    base = split.scheme.partition("+")[0]
    if base not in ("redis", "rediss") or kind not in (SENTINEL, CLUSTER):
        raise ValueError("no scheme of a Redis")
    credentials, _, hosts = split.netloc.rpartition("@")
    # redis-py reads its own options from the query, with their types.
    options = dict(parse_url(f"{base}://{credentials}{'@' if credentials else ''}host:1?{split.query}"))
    tls = options.pop("connection_class", None) is not None
    for name in ("host", "port"):
        options.pop(name, None)
    default_port = SENTINEL_PORT if kind == SENTINEL else PORT
    service, _, db = split.path.strip("/").partition("/")
    if (kind == SENTINEL) != bool(service):
        raise ValueError("a Sentinel's service is missing, or a Cluster has one")
    if db:
        if not (db.isascii() and db.isdecimal()):
            raise ValueError("the database is no number")
        options["db"] = int(db)
    if tls:
        options["ssl"] = True
    return Address([_host(host, default_port) for host in hosts.split(",")], unquote(service), options)


def _host(text: str, default_port: int) -> tuple[str, int]:
    split = urlsplit(f"//{text}")
    if not split.hostname:
        raise ValueError("a host is missing")
    return split.hostname, split.port or default_port


def check_redis_url(url: str) -> None:
    """Check a Redis URL without connecting.

    Raises:
        ValueError: For a URL that redis-py cannot use. The message does not repeat the URL: it may hold a password.
    """
    try:
        # Makes the client with all its options, and does not connect.
        client = connect(url, timeout_s=1.0, most_connections=1)
        right = _has_a_number_for_db(url) and not _decodes(client)
    except Exception:  # redis-py: ValueError, TypeError for an unknown option, RedisError, AttributeError
        right = False
    if not right:
        raise ValueError(
            "is no URL of a Redis: set it to redis://[user:password@]host:port/db (or rediss://, unix://, "
            "redis+sentinel://host:port,host:port/service/db, redis+cluster://host:port), with the password "
            "percent-encoded, a number for db, and no option that redis-py does not know"
        )


def _decodes(client: Any) -> bool:
    if isinstance(client, AsyncCluster):
        return bool(client.get_encoder().decode_responses)
    pool = client.connection_pool
    return bool(pool.connection_class(**pool.connection_kwargs).encoder.decode_responses)


def _has_a_number_for_db(url: str) -> bool:
    """Redis-py silently takes 0 for a path that is none."""
    split = urlsplit(url)
    db = split.path.strip("/")
    return split.scheme == "unix" or "+" in split.scheme or not db or (db.isascii() and db.isdecimal())
