"""ctr-publish: write a bundle's vocabulary to Redis. Publishing the same bundle again is safe."""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from contract.bundle import Bundle, BundleError, Manifest, open_bundle
from service.vocabulary.tiered import hash_key, ready_for, ready_key

VERSIONS = "ctr:versions"  # A sorted set: version -> when it was published.
MODELS = "ctr:models"  # A hash: version -> name of its model.
CHUNK = 1000  # tokens per HSET, keys per UNLINK
TIMEOUT_S = 10.0


class PublishError(RuntimeError):
    """Redis does not contain all tokens that were written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 if the vocabulary was published, or 2 after an error message."""
    parser = argparse.ArgumentParser("ctr-publish", description="Publish a bundle's vocabulary to Redis.")
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--redis-url", default=os.environ.get("CTR_REDIS_URL"), help="default: CTR_REDIS_URL")
    parser.add_argument(
        "--keep", type=version_count, metavar="N", help="afterwards, delete all but the newest N versions of this model"
    )
    arguments = parser.parse_args(argv)
    if not arguments.redis_url:
        parser.error("no Redis URL: pass --redis-url or set CTR_REDIS_URL")

    # redis-py takes 0.1 s to import, and --help does not need it.
    import redis
    from redis.exceptions import RedisClusterException

    from service.vocabulary.redis_client import check_redis_url, connect_blocking

    try:
        check_redis_url(arguments.redis_url)
        bundle = open_bundle(arguments.bundle)
        with closing(connect_blocking(arguments.redis_url, TIMEOUT_S)) as client:
            counts = publish(client, bundle)
            dropped = drop_older(client, bundle.manifest, arguments.keep) if arguments.keep else []
            unnamed = versions_without_model(client) if arguments.keep else []
    except (BundleError, PublishError, ValueError) as error:
        print(f"ctr-publish: {error}", file=sys.stderr)
        return 2
    except redis.OutOfMemoryError:
        print(
            "ctr-publish: Redis is full, so this version is not in use. "
            "Raise its maxmemory, or delete older versions with --keep",
            file=sys.stderr,
        )
        return 2
    except (redis.RedisError, RedisClusterException) as error:
        # The URL is not printed, because it may contain a password.
        print(
            f"ctr-publish: Redis failed: {str(error).rstrip('.')}. Check that it is running and that the URL is right",
            file=sys.stderr,
        )
        return 2
    for field, count in counts.items():
        print(f"{field}: {count} tokens")
    print(f"published {bundle.manifest.name} {bundle.manifest.version}: {sum(counts.values())} tokens")
    for version in dropped:
        print(f"dropped {version}")
    if unnamed:
        print(f"kept {len(unnamed)} versions of unknown models, published before 0.9: {', '.join(unnamed)}")
        print("to let --keep count them, publish again those in use, and delete the others (docs/deployment.md)")
    return 0


def version_count(text: str) -> int:
    """Parse the value of --keep."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("keep at least 1: the version that is being published")
    return number


def publish(client: Any, bundle: Bundle) -> dict[str, int]:
    """Write a bundle's vocabulary to Redis. Return the number of tokens of each field.

    The ready key is written last, so no server uses a version that is only partly published.

    Raises:
        PublishError: Redis has a different number of tokens afterwards. In that case, the ready key is not written.
    """
    version, ready = bundle.manifest.version, ready_for(bundle)
    keys = {field: hash_key(version, field) for field in bundle.vocabularies}
    client.hset(MODELS, version, bundle.manifest.name)  # First, because --keep never counts a version without a model.
    client.zadd(VERSIONS, {version: time.time()})
    if not is_published(client, version, ready.counts):
        client.delete(ready_key(version))
        client.unlink(*keys.values())
    for field, vocabulary in bundle.vocabularies.items():
        items = vocabulary.items()
        while chunk := dict(itertools.islice(items, CHUNK)):
            client.hset(keys[field], mapping=chunk)
    found = count_tokens(client, version, ready.counts)
    if found != ready.counts:
        client.delete(ready_key(version))
        raise PublishError(
            f"Redis has {found} tokens, but the bundle has {ready.counts}. "
            "Make sure that no other ctr-publish is running, then publish again"
        )
    client.set(ready_key(version), msgspec.json.encode(ready))
    return ready.counts


def is_published(client: Any, version: str, counts: dict[str, int]) -> bool:
    """Return whether Redis has a version's ready key and the expected number of tokens of each field."""
    return bool(client.exists(ready_key(version))) and count_tokens(client, version, counts) == counts


def count_tokens(client: Any, version: str, fields: dict[str, int]) -> dict[str, int]:
    """Return the number of tokens that Redis has for each of these fields."""
    return {field: client.hlen(hash_key(version, field)) for field in fields}


def drop_older(client: Any, published: Manifest, keep: int) -> list[str]:
    """Delete all but the newest `keep` versions of a model. Return the deleted versions.

    Args:
        client: A synchronous redis-py client.
        published: The manifest of the version that was just published. It is always kept.
        keep: Number of versions to keep, at least 1.
    """
    models = client.hgetall(MODELS)
    newest_first = [member.decode() for member in client.zrevrange(VERSIONS, 0, -1)]
    same_model = [version for version in newest_first if models.get(version.encode()) == published.name.encode()]
    older = [version for version in same_model if version != published.version][keep - 1 :]
    for dropped in older:
        client.delete(ready_key(dropped))  # Deleted first, so that no server uses a version that is being deleted.
        keys = client.scan_iter(match=f"ctr:{{{dropped}}}:*", count=CHUNK)
        while chunk := list(itertools.islice(keys, CHUNK)):
            client.unlink(*chunk)
        client.zrem(VERSIONS, dropped)
        client.hdel(MODELS, dropped)
    return older


def versions_without_model(client: Any) -> list[str]:
    """Return the versions whose model is unknown, because an earlier release published them."""
    models = client.hgetall(MODELS)
    return [version.decode() for version in client.zrange(VERSIONS, 0, -1) if version not in models]


if __name__ == "__main__":
    sys.exit(main())
