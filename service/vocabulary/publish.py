"""ctr-publish: write a bundle's vocabulary to Redis. A vocabulary that Redis already has is not written again."""

import argparse
import itertools
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from contract.bundle import Bundle, BundleError, open_bundle
from service.vocabulary.tiered import Ready, hash_key, key_prefix, ready_for, ready_key

PUBLICATIONS = "ctr:publications"  # A sorted set: "<digest> <name of the model>" -> when it was last published.
# Releases before 0.12 used one set of keys per version of a bundle, ctr:{<version>}:*, and listed them in these keys.
OLD_VERSIONS = "ctr:versions"  # A sorted set: version -> when it was published.
OLD_MODELS = "ctr:models"  # A hash: version -> name of its model.
CHUNK = 1000  # tokens per HSET, keys per UNLINK
TIMEOUT_S = 10.0
# A digest of a vocabulary, or a version of a bundle. It becomes part of a pattern of keys to delete, in which a
# character such as * would match the keys of other vocabularies.
DIGEST = re.compile(r"[\w.-]+", re.ASCII)


class PublishError(RuntimeError):
    """Redis does not contain all tokens that were written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 if the vocabulary was published, or 2 after an error message."""
    parser = argparse.ArgumentParser("ctr-publish", description="Publish a bundle's vocabulary to Redis.")
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--redis-url", default=os.environ.get("CTR_REDIS_URL"), help="default: CTR_REDIS_URL")
    parser.add_argument(
        "--keep",
        type=vocabulary_count,
        metavar="N",
        help="afterwards, delete all but the newest N vocabularies of this model",
    )
    parser.add_argument(
        "--drop-old-format",
        action="store_true",
        help="afterwards, delete what releases before 0.12 published, once no server of these releases runs",
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
            check_type(client, OLD_VERSIONS)
            written = publish(client, bundle)
            dropped = drop_older(client, bundle, arguments.keep) if arguments.keep else []
            dropped += drop_old_format(client) if arguments.drop_old_format else []
            old = client.zcard(OLD_VERSIONS)
    except (BundleError, PublishError, ValueError) as error:
        print(f"ctr-publish: {error}", file=sys.stderr)
        return 2
    except redis.OutOfMemoryError:
        print(
            "ctr-publish: Redis is full, so this vocabulary is not in use. "
            "Raise its maxmemory, or delete older vocabularies with --keep",
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
    print(report(bundle, written))
    for name in dropped:
        print(f"dropped {name}")
    if old:
        print(f"kept {old} versions published by releases before 0.12, which servers of these releases use")
        print("once no such server runs, delete them with --drop-old-format")
    return 0


def report(bundle: Bundle, written: bool) -> str:
    """Return what is printed about a publication."""
    ready = ready_for(bundle)
    total = f"{bundle.manifest.name} {bundle.manifest.version}: {sum(ready.counts.values())} tokens"
    if not written:
        return f"already published {total} (vocabulary {ready.vocabulary})"
    counts = [f"{field}: {count} tokens" for field, count in ready.counts.items()]
    return "\n".join([*counts, f"published {total} (vocabulary {ready.vocabulary})"])


def vocabulary_count(text: str) -> int:
    """Parse the value of --keep."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("keep at least 1: the vocabulary that is being published")
    return number


def publish(client: Any, bundle: Bundle) -> bool:
    """Write a bundle's vocabulary to Redis. Return False if Redis already has it.

    The ready key is written last, so no server uses a vocabulary that is only partly published.

    Raises:
        PublishError: Redis has a different number of tokens afterwards, so the ready key is not written. Or the list of
            publications is not a sorted set.
    """
    ready = ready_for(bundle)
    digest = ready.vocabulary
    # The publication is listed first, so that --keep finds a vocabulary that was only partly published.
    check_type(client, PUBLICATIONS)
    client.zadd(PUBLICATIONS, {f"{digest} {bundle.manifest.name}": time.time()})
    if is_published(client, ready):
        return False
    keys = {field: hash_key(digest, field) for field in bundle.vocabularies}
    client.delete(ready_key(digest))
    client.unlink(*keys.values())
    for field, vocabulary in bundle.vocabularies.items():
        items = vocabulary.items()
        while chunk := dict(itertools.islice(items, CHUNK)):
            client.hset(keys[field], mapping=chunk)
    found = count_tokens(client, ready)
    if found != ready.counts:
        client.delete(ready_key(digest))
        raise PublishError(
            f"Redis has {found} tokens, but the bundle has {ready.counts}. "
            "Make sure that no other ctr-publish is running, then publish again"
        )
    client.set(ready_key(digest), msgspec.json.encode(ready))
    return True


def is_published(client: Any, ready: Ready) -> bool:
    """Return whether Redis has a vocabulary's ready key and the expected number of tokens of each field."""
    types = [client.type(hash_key(ready.vocabulary, field)) for field in ready.counts]
    if client.type(ready_key(ready.vocabulary)) != b"string" or any(found != b"hash" for found in types):
        return False  # Another program wrote these keys, or they are missing.
    try:
        found = msgspec.json.decode(client.get(ready_key(ready.vocabulary)) or b"", type=Ready)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # Another program wrote it.
        return False
    return found == ready and count_tokens(client, ready) == ready.counts


def count_tokens(client: Any, ready: Ready) -> dict[str, int]:
    """Return the number of tokens that Redis has for each field of a vocabulary."""
    return {field: client.hlen(hash_key(ready.vocabulary, field)) for field in ready.counts}


def check_type(client: Any, key: str) -> None:
    """Raise PublishError if a key exists and is not a sorted set."""
    if (found := client.type(key)) not in (b"zset", b"none"):
        raise PublishError(
            f"the key {key} is a {found.decode()}, not a sorted set, so another program wrote it. Rename or delete the "
            "key, or use another database of Redis"
        )


def drop_older(client: Any, published: Bundle, keep: int) -> list[str]:
    """Delete all but the newest `keep` vocabularies of a model. Return the digests of those that are deleted.

    A vocabulary that another model uses as well stays in Redis.

    Args:
        client: A synchronous redis-py client.
        published: The bundle that was just published. Its vocabulary is always kept.
        keep: Number of vocabularies to keep, at least 1.
    """
    names = {member: split_member(member) for member in client.zrevrange(PUBLICATIONS, 0, -1)}  # newest first
    current = ready_for(published).vocabulary
    of_model = [member for member, (digest, model) in names.items() if model == published.manifest.name and digest]
    deleted = []
    for member in [member for member in of_model if names[member][0] != current][keep - 1 :]:
        digest, _ = names.pop(member)
        if not any(digest == used for used, _ in names.values()):
            client.delete(ready_key(digest))  # First, so that no server uses a vocabulary that is being deleted.
            unlink_all(client, f"{key_prefix(digest)}*")
            deleted.append(digest)
        client.zrem(PUBLICATIONS, member)
    return deleted


def split_member(member: bytes) -> tuple[str, str]:
    """Return the digest and the model of a member of PUBLICATIONS, or empty strings if another program wrote it."""
    digest, _, model = member.decode(errors="replace").partition(" ")
    return (digest, model) if DIGEST.fullmatch(digest) else ("", "")


def drop_old_format(client: Any) -> list[str]:
    """Delete everything that releases before 0.12 published. Return the versions."""
    versions = [member.decode(errors="replace") for member in client.zrange(OLD_VERSIONS, 0, -1)]
    versions = [version for version in versions if DIGEST.fullmatch(version)]
    for version in versions:
        client.delete(f"ctr:{{{version}}}:ready")
        unlink_all(client, f"ctr:{{{version}}}:*")
        client.zrem(OLD_VERSIONS, version)
    client.delete(OLD_MODELS)
    return versions


def unlink_all(client: Any, pattern: str) -> None:
    """Delete all keys that match a pattern."""
    keys = client.scan_iter(match=pattern, count=CHUNK)
    while chunk := list(itertools.islice(keys, CHUNK)):
        client.unlink(*chunk)


if __name__ == "__main__":
    sys.exit(main())
