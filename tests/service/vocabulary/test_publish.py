"""ctr-publish against a real Redis."""

from pathlib import Path
from typing import Any

import pytest
import redis

from contract.bundle import open_bundle
from service.vocabulary import publish as publishing
from service.vocabulary.publish import PUBLICATIONS, PublishError, count_tokens, drop_older, main, publish
from service.vocabulary.tiered import hash_key, key_prefix, ready_for, ready_key, vocabulary_digest
from tests.support.redis_server import RedisServer
from tests.support.small_bundle import with_users_rotated, write_small_bundle


def digest_of(folder: Path) -> str:
    return vocabulary_digest(open_bundle(folder).manifest)


def test_publishing_prints_counts(bundle: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "--redis-url", redis_server.url]) == 0
    out = capsys.readouterr().out
    assert "item: 90 tokens" in out
    assert f"published small {open_bundle(bundle).manifest.version}: 136 tokens" in out
    with redis_server.client() as client:
        for field, vocabulary in open_bundle(bundle).vocabularies.items():
            stored: Any = client.hgetall(hash_key(digest_of(bundle), field))
            assert {token.decode(): int(number) for token, number in stored.items()} == dict(vocabulary.items())


def test_a_bundle_with_the_same_vocabulary_is_already_published(
    bundle: Path, tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    retrained = write_small_bundle(tmp_path / "retrained", seed=1)
    assert open_bundle(retrained).manifest.version != open_bundle(bundle).manifest.version
    assert main([str(bundle), "--redis-url", redis_server.url]) == 0
    with redis_server.client() as client:
        written = client.info("commandstats")["cmdstat_hset"]["calls"]
        for folder in (bundle, retrained):
            capsys.readouterr()
            assert main([str(folder), "--redis-url", redis_server.url]) == 0
            published = f"already published small {open_bundle(folder).manifest.version}: 136 tokens"
            assert capsys.readouterr().out.startswith(published)
        assert client.info("commandstats")["cmdstat_hset"]["calls"] == written


def test_url_can_come_from_the_environment(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTR_REDIS_URL", redis_server.url)
    assert main([str(bundle)]) == 0


def test_vocabulary_is_complete_when_written_in_several_chunks(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CHUNK", 7)
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        assert publish(client, opened)
        assert count_tokens(client, ready_for(opened)) == {"user": 40, "weekday": 3, "item": 90, "cost": 3}


def test_leftovers_of_an_interrupted_publication_are_replaced(bundle: Path, redis_server: RedisServer) -> None:
    opened, users = open_bundle(bundle), hash_key(digest_of(bundle), "user")
    with redis_server.client() as client:
        client.hset(users, mapping={"no such token": 3, "u1": 39})
        assert publish(client, opened)
        assert client.hlen(users) == 40
        assert client.hget(users, "u1") == b"3"


@pytest.mark.parametrize("lost", ["ready", "ids:user", "ids:item"])
def test_a_vocabulary_that_redis_lost_in_part_is_written_again(
    bundle: Path, redis_server: RedisServer, lost: str
) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        assert publish(client, opened)
        assert client.delete(key_prefix(digest_of(bundle)) + lost) == 1
        assert publish(client, opened)
        assert count_tokens(client, ready_for(opened)) == ready_for(opened).counts
        assert not publish(client, opened)


def test_ready_key_is_not_written_if_the_counts_differ(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, digest = open_bundle(bundle), digest_of(bundle)
    write = redis.Redis.hset

    def write_beside_another_writer(client: Any, name: str, *arguments: Any, **options: Any) -> Any:
        write(client, name, "an intruder", "3")
        return write(client, name, *arguments, **options)

    with redis_server.client() as client:
        monkeypatch.setattr(redis.Redis, "hset", write_beside_another_writer)
        with pytest.raises(PublishError, match="publish again"):
            publish(client, opened)
        assert not client.exists(ready_key(digest))


def test_keep_deletes_the_oldest_vocabularies_but_never_the_one_just_published(
    tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [with_users_rotated(write_small_bundle(tmp_path / str(number)), number) for number in range(4)]
    digests = [digest_of(folder) for folder in folders]
    with redis_server.client() as client:
        for folder in folders:
            assert main([str(folder), "--redis-url", redis_server.url, "--keep", "2"]) == 0
        left: Any = client.keys("ctr:*")
        assert not any(digest in key.decode() for key in left for digest in digests[:2])
        assert all(client.exists(ready_key(digest)) for digest in digests[2:])
        assert f"dropped {digests[1]}" in capsys.readouterr().out
        # If the clock was set back, another vocabulary looks newer than the one just published.
        client.zadd(PUBLICATIONS, {f"{digests[2]} small": 1e12})
        assert main([str(folders[0]), "--redis-url", redis_server.url, "--keep", "1"]) == 0
        members: Any = client.zrange(PUBLICATIONS, 0, -1)
        assert [member.decode() for member in members] == [f"{digests[0]} small"]
        assert client.exists(ready_key(digests[0]))
        assert client.hlen(hash_key(digests[2], "user")) == 0


def test_keep_counts_each_vocabulary_once_by_its_newest_publication(tmp_path: Path, redis_server: RedisServer) -> None:
    old = write_small_bundle(tmp_path / "old")
    new = with_users_rotated(write_small_bundle(tmp_path / "new"), 1)
    newest = with_users_rotated(write_small_bundle(tmp_path / "newest"), 2)
    # Recalibrated every day: many versions, and one vocabulary.
    recalibrated = [write_small_bundle(tmp_path / str(seed), seed=seed) for seed in range(1, 4)]
    with redis_server.client() as client:
        for folder in (old, new, *recalibrated):
            assert main([str(folder), "--redis-url", redis_server.url, "--keep", "2"]) == 0
        assert all(client.exists(ready_key(digest_of(folder))) for folder in (old, new))
        assert main([str(newest), "--redis-url", redis_server.url, "--keep", "2"]) == 0
        kept = [bool(client.exists(ready_key(digest_of(folder)))) for folder in (old, new, newest)]
    assert kept == [True, False, True]  # The oldest vocabulary was published again after the second one.


def test_keep_deletes_a_partly_published_vocabulary(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        client.zadd(PUBLICATIONS, {"0ld small": 1.0})
        client.hset(hash_key("0ld", "a field of another schema"), "token", "2")
        publish(client, opened)
        assert drop_older(client, opened, 1) == ["0ld"]
        assert client.keys("ctr:vocabulary:{0ld}:*") == []


def test_keep_deletes_no_vocabulary_that_another_model_uses(
    tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = write_small_bundle(tmp_path / "shared", name="two words")
    folders = [with_users_rotated(write_small_bundle(tmp_path / str(number)), number) for number in range(3)]
    with redis_server.client() as client:
        for folder in (shared, *folders):
            assert main([str(folder), "--redis-url", redis_server.url, "--keep", "1"]) == 0
        assert digest_of(shared) == digest_of(folders[0])
        assert client.exists(ready_key(digest_of(shared)))
        assert not client.exists(ready_key(digest_of(folders[1])))
        members: Any = client.zrange(PUBLICATIONS, 0, -1)
        digests = digest_of(shared), digest_of(folders[2])
        assert {member.decode() for member in members} == {f"{digests[0]} two words", f"{digests[1]} small"}
        out = capsys.readouterr().out
        assert f"dropped {digest_of(folders[1])}" in out
        assert f"dropped {digests[0]}" not in out
        # Once the other model moves on, its old vocabulary is deleted.
        moved = with_users_rotated(write_small_bundle(tmp_path / "moved", name="two words"), 5)
        assert main([str(moved), "--redis-url", redis_server.url, "--keep", "1"]) == 0
        assert not client.exists(ready_key(digests[0]))


def test_keys_of_earlier_releases_stay_until_they_are_dropped_explicitly(
    bundle: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Release 0.11 used ctr:{<version>}:ready, ctr:{<version>}:v:<field>, ctr:versions and ctr:models."""
    version = open_bundle(bundle).manifest.version
    arguments = [str(bundle), "--redis-url", redis_server.url, "--keep", "1"]
    with redis_server.client() as client:
        for old in (version, "from-0.8"):
            client.zadd("ctr:versions", {old: 1.0})
            client.set(f"ctr:{{{old}}}:ready", "{}")
            client.hset(f"ctr:{{{old}}}:v:a field", "token", "2")
        client.hset("ctr:models", version, "small")
        old_keys: Any = set(client.keys("ctr:*"))
        assert main(arguments) == 0
        assert old_keys < set(client.keys("ctr:*"))
        out = capsys.readouterr().out
        assert "kept 2 versions published by releases before 0.12" in out
        assert "delete them with --drop-old-format" in out
        assert main([*arguments, "--drop-old-format"]) == 0
        out = capsys.readouterr().out
        assert f"dropped {version}" in out
        assert "dropped from-0.8" in out
        assert "kept" not in out
        assert not old_keys & set(client.keys("ctr:*"))
        assert client.exists(ready_key(digest_of(bundle)))


@pytest.mark.parametrize("member", [b"* small", b" small", b"small", b"", b"\xff\xfe small", b"[a-z0-9]* small"])
def test_keep_ignores_what_other_programs_wrote_into_the_list(
    tmp_path: Path, redis_server: RedisServer, member: bytes
) -> None:
    """As a pattern of keys to delete, * would match all vocabularies."""
    used = write_small_bundle(tmp_path / "used", name="another")
    old, new = (with_users_rotated(write_small_bundle(tmp_path / str(number)), number) for number in (1, 2))
    with redis_server.client() as client:
        client.zadd(PUBLICATIONS, {member: 1.0})
        client.zadd("ctr:versions", {member.split(b" ")[0]: 1.0})
        for folder in (used, old, new):
            words = [str(folder), "--redis-url", redis_server.url, "--keep", "1", "--drop-old-format"]
            assert main(words) == 0
        assert [bool(client.exists(ready_key(digest_of(folder)))) for folder in (used, old, new)] == [True, False, True]
        assert client.hlen(hash_key(digest_of(used), "user")) == 40


@pytest.mark.parametrize("kept", ["ready", "ids:user"])
def test_keys_of_another_type_are_replaced(bundle: Path, redis_server: RedisServer, kept: str) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        assert publish(client, opened)
        client.delete(key_prefix(digest_of(bundle)) + kept)
        client.lpush(key_prefix(digest_of(bundle)) + kept, "garbage")
        assert main([str(bundle), "--redis-url", redis_server.url]) == 0
        assert not publish(client, opened)


def test_a_deeply_nested_ready_key_is_replaced(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        assert publish(client, opened)
        client.set(ready_key(digest_of(bundle)), '{"x": ' + "[" * 100_000)
        assert publish(client, opened)
        assert not publish(client, opened)


@pytest.mark.parametrize("key", [PUBLICATIONS, "ctr:versions"])
def test_a_list_of_another_type_is_named(
    bundle: Path, redis_server: RedisServer, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with redis_server.client() as client:
        client.set(key, "garbage")
        assert main([str(bundle), "--redis-url", redis_server.url]) == 2
        assert f"the key {key} is a string, not a sorted set" in capsys.readouterr().err
        assert not client.exists(ready_key(digest_of(bundle)))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://:secret@127.0.0.1:1/0", "Check that it is running"),
        ("http://:secret@127.0.0.1/", "not a valid Redis URL"),
        ("redis://:secret/word@127.0.0.1/", "Percent-encode"),
    ],
)
def test_unusable_redis_is_reported_without_the_password(
    bundle: Path, capsys: pytest.CaptureFixture[str], url: str, message: str
) -> None:
    assert main([str(bundle), "--redis-url", url]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "secret" not in error
    assert "Traceback" not in error


def test_folder_that_is_not_a_bundle_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--redis-url", "redis://127.0.0.1:1"]) == 2
    assert "manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--keep", "0"], ["--keep", "many"], []])
def test_invalid_arguments_are_refused(bundle: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main([str(bundle), *arguments])
    assert refused.value.code == 2


def test_url_with_an_unknown_option_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "--redis-url", "redis://:a-secret-word@h:6399/0?foo=bar"]) == 2
    error = capsys.readouterr().err
    assert "not a valid Redis URL" in error
    assert "secret" not in error
