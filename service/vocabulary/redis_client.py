"""Redis clients from a URL: a single server, a primary behind Sentinels, or a Cluster, each with or without TLS.

    redis://[user:password@]host:port/db            rediss://... with TLS, unix:///path
    redis+sentinel://[user:password@]host:port[,host:port...]/service/db
    redis+cluster://[user:password@]host:port[,host:port...]       rediss+sentinel, rediss+cluster

The query string can contain redis-py's own options, for example `?ssl_ca_certs=/path`.
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
    """A parsed redis+sentinel or redis+cluster URL.

    Attributes:
        kind: SENTINEL or CLUSTER.
        hosts: (host, port) of each Sentinel or node.
        service: The Sentinels' name for the primary. Empty for a Cluster.
        options: Keyword arguments for redis-py.
    """

    kind: str
    hosts: list[tuple[str, int]]
    service: str
    options: Mapping[str, Any]

    def sentinel_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options for connections to the Sentinels, which have no databases and usually no password."""
        tls = {name: value for name, value in self.options.items() if name.startswith("ssl")}
        return {**options, **tls}


def connect(url: str, timeout_s: float, max_connections: int) -> Any:
    """Return an asyncio client that connects on first use.

    The client does not retry, because a request can wait only for milliseconds.

    Raises:
        ValueError: The URL is invalid. The message does not repeat the URL.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": AsyncRetry(NoBackoff(), 0),
        "protocol": 2,
    }
    address = parse_address(url)
    if address is None:
        return AsyncRedis.from_pool(ConnectionPool.from_url(url, max_connections=max_connections, **options))
    if address.kind == CLUSTER:
        # A Cluster client refreshes its slot map only before a retry, so it is allowed one retry. redis-py waits a
        # quarter of a second before the retry, but no request waits that long.
        options |= {"retry": AsyncRetry(NoBackoff(), 1), "max_connections": max_connections, **address.options}
        return AsyncCluster(startup_nodes=[AsyncClusterNode(*host) for host in address.hosts], **options)
    sentinels = AsyncSentinel(address.hosts, sentinel_kwargs=address.sentinel_options(options))
    options |= {"max_connections": max_connections, **address.options}
    return sentinels.master_for(address.service, SentinelManagedRedis, **options)


class SentinelManagedRedis(AsyncRedis):
    """A client that also closes its connections to the Sentinels."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        await pool.sentinel_manager.aclose()


def connect_blocking(url: str, timeout_s: float) -> Any:
    """Return a synchronous client with redis-py's own retries, for commands that can wait."""
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "protocol": 2}
    address = parse_address(url)
    if address is None:
        return redis.Redis.from_url(url, **options)
    if address.kind == CLUSTER:
        return RedisCluster(
            startup_nodes=[ClusterNode(*host) for host in address.hosts], **{**options, **address.options}
        )
    options["retry"] = Retry(NoBackoff(), 3)
    sentinels = Sentinel(address.hosts, sentinel_kwargs=address.sentinel_options(options))
    return sentinels.master_for(address.service, **{**options, **address.options})


def parse_address(url: str) -> Address | None:
    """Parse a redis+sentinel or redis+cluster URL. Return None for the URL of a single server, which redis-py parses.

    Raises:
        ValueError: The URL is invalid.
    """
    split = urlsplit(url)
    base, _, kind = split.scheme.partition("+")
    if not kind:
        return None
    if base not in ("redis", "rediss") or kind not in (SENTINEL, CLUSTER):
        raise ValueError("unknown scheme")
    credentials, _, hosts = split.netloc.rpartition("@")
    # redis-py parses its own options from the query string and converts their types.
    options = dict(parse_url(f"{base}://{credentials}{'@' if credentials else ''}host:1?{split.query}"))
    tls = options.pop("connection_class", None) is not None
    for name in ("host", "port"):
        options.pop(name, None)
    service, _, db = split.path.strip("/").partition("/")
    if (kind == SENTINEL) != bool(service):
        raise ValueError("a Sentinel URL needs a service name, and a Cluster URL must not have one")
    if db:
        if not (db.isascii() and db.isdecimal()):
            raise ValueError("the database must be a number")
        options["db"] = int(db)
    if tls:
        options["ssl"] = True
    addresses = []
    for host in hosts.split(","):
        parsed = urlsplit(f"//{host}")
        if not parsed.hostname:
            raise ValueError("a host is missing")
        addresses.append((parsed.hostname, parsed.port or (SENTINEL_PORT if kind == SENTINEL else PORT)))
    return Address(kind, addresses, unquote(service), options)


def check_redis_url(url: str) -> None:
    """Check a Redis URL without connecting.

    Raises:
        ValueError: redis-py cannot use the URL. The message does not repeat the URL, which may contain a password.
    """
    try:
        split = urlsplit(url)
        db = split.path.strip("/")
        # redis-py silently uses database 0 if the path is not a number.
        is_valid = split.scheme == "unix" or "+" in split.scheme or not db or (db.isascii() and db.isdecimal())
        # Connecting creates the client with all of its options, but opens no connection yet.
        is_valid = is_valid and not decodes_responses(connect(url, timeout_s=1.0, max_connections=1))
    except Exception:  # redis-py: ValueError, TypeError for an unknown option, RedisError, AttributeError
        is_valid = False
    if not is_valid:
        raise ValueError(
            "not a valid Redis URL: use redis://[user:password@]host:port/db (or rediss://, unix://, "
            "redis+sentinel://host:port,host:port/service/db, redis+cluster://host:port). Percent-encode the password, "
            "give the database as a number, and use only options that redis-py supports"
        )


def decodes_responses(client: Any) -> bool:
    """Return whether a client decodes replies to strings. The service needs bytes."""
    if isinstance(client, AsyncCluster):
        return bool(client.get_encoder().decode_responses)
    pool = client.connection_pool
    return bool(pool.connection_class(**pool.connection_kwargs).encoder.decode_responses)
