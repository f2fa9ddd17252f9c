"""ctr-publish: a bundle's vocabulary into Redis. Run again, it does no harm."""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import redis
from redis.exceptions import RedisClusterException

from contract.bundle import Bundle, BundleError, open_bundle
from contract.vocabulary import Vocabulary
from service.vocabulary.redis_client import check_redis_url, connect_and_wait
from service.vocabulary.tiered import hash_key, ready_for, ready_key

VERSIONS = "ctr:versions"
CHUNK = 1000  # tokens in one HSET, keys in one UNLINK
TIMEOUT_S = 10.0


class PublishError(RuntimeError):
    """What Redis holds is not what was written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: published. 2: not, and a sentence says why."""
    parser = argparse.ArgumentParser("ctr-publish", description="Publishes a bundle's vocabulary to Redis.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--redis-url", default=os.environ.get("CTR_REDIS_URL"), help="default: CTR_REDIS_URL")
    parser.add_argument("--keep", type=_at_least_one, metavar="N", help="drop all but the newest N versions")
    arguments = parser.parse_args(argv)
    if not arguments.redis_url:
        parser.error("which Redis? Give --redis-url or set CTR_REDIS_URL")
    try:
        check_redis_url(arguments.redis_url)
        bundle = open_bundle(arguments.bundle)
        with closing(connect_and_wait(arguments.redis_url, TIMEOUT_S)) as client:
            counts = publish(client, bundle)
            dropped = drop_older(client, bundle.manifest.version, arguments.keep) if arguments.keep else []
    except (BundleError, PublishError, ValueError) as error:
        print(f"ctr-publish: {error}", file=sys.stderr)
        return 2
    except redis.OutOfMemoryError:
        full = "Redis is full: raise its maxmemory, or drop older versions with --keep"
        print(f"ctr-publish: {full}. The version is not in use", file=sys.stderr)
        return 2
    except (redis.RedisError, RedisClusterException) as error:
        # Not the URL: it may hold a password.
        print(
            f"ctr-publish: Redis cannot be used: {str(error).rstrip('.')}. Is it running, and is the URL right?",
            file=sys.stderr,
        )
        return 2
    for field, count in counts.items():
        print(f"{field}: {count} tokens")
    print(f"published {bundle.manifest.name} {bundle.manifest.version}: {sum(counts.values())} tokens")
    for version in dropped:
        print(f"dropped {version}")
    return 0


def publish(client: Any, bundle: Bundle) -> dict[str, int]:
    """Tokens written by field. `ready` comes last: nobody uses a version that is published in part.

    Raises:
        PublishError: when the counts do not agree afterwards; then there is no `ready`.
    """
    version, ready = bundle.manifest.version, ready_for(bundle)
    keys = {field: hash_key(version, field) for field in bundle.vocabularies}
    client.zadd(VERSIONS, {version: time.time()})
    if not _is_whole(client, version, ready_for(bundle).counts):
        client.delete(ready_key(version))
        client.unlink(*keys.values())
    for field, vocabulary in bundle.vocabularies.items():
        for chunk in _chunks(vocabulary):
            client.hset(keys[field], mapping=chunk)
    found = _counts(client, version, ready.counts)
    if found != ready.counts:
        client.delete(ready_key(version))
        raise PublishError(f"Redis holds {found} tokens, the bundle {ready.counts}: is another one writing? Run again")
    client.set(ready_key(version), msgspec.json.encode(ready))
    return ready.counts


def drop_older(client: Any, version: str, keep: int) -> list[str]:
    """Drops all versions but the newest `keep`; `version`, just published, is always one of those that stay."""
    members: list[Any] = client.zrevrange(VERSIONS, 0, -1)
    newest_first = [member.decode() for member in members]
    older = [one for one in newest_first if one != version][keep - 1 :]
    for one in older:
        client.delete(ready_key(one))  # first: a server must not use what is about to go
        keys = client.scan_iter(match=f"ctr:{{{one}}}:*", count=CHUNK)
        while chunk := list(itertools.islice(keys, CHUNK)):
            client.unlink(*chunk)
        client.zrem(VERSIONS, one)
    return older


def _is_whole(client: Any, version: str, counts: dict[str, int]) -> bool:
    return bool(client.exists(ready_key(version))) and _counts(client, version, counts) == counts


def _counts(client: Any, version: str, fields: dict[str, int]) -> dict[str, int]:
    return {field: client.hlen(hash_key(version, field)) for field in fields}


def _chunks(vocabulary: Vocabulary) -> Iterator[dict[Any, Any]]:
    items = vocabulary.items()
    while chunk := dict(itertools.islice(items, CHUNK)):
        yield chunk


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("keep at least 1: the version that is being published")
    return number


if __name__ == "__main__":
    sys.exit(main())
