"""ctr-publish against a real Redis."""

from pathlib import Path
from typing import Any

import pytest

from contract.bundle import open_bundle
from service.vocabulary import publish as publishing
from service.vocabulary.publish import VERSIONS, PublishError, drop_older, main, publish
from service.vocabulary.tiered import hash_key, ready_key
from tests.support.redis_server import RedisServer
from tests.support.small_bundle import write_small_bundle


def test_publishing_prints_counts_and_may_be_repeated(
    bundle: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main([str(bundle), "--redis-url", redis_server.url]) == 0
        out = capsys.readouterr().out
        assert "item: 90 tokens" in out
        assert "136 tokens" in out
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        for field, vocabulary in opened.vocabularies.items():
            stored: Any = client.hgetall(hash_key(opened.manifest.version, field))
            assert {token.decode(): int(number) for token, number in stored.items()} == dict(vocabulary.items())


def test_the_url_may_come_from_the_environment(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTR_REDIS_URL", redis_server.url)
    assert main([str(bundle)]) == 0


def test_chunks_smaller_than_a_vocabulary_lose_nothing(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CHUNK", 7)
    with redis_server.client() as client:
        assert publish(client, open_bundle(bundle)) == {"user": 40, "weekday": 3, "item": 90, "cost": 3}


def test_what_a_broken_publication_left_is_replaced(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    version = opened.manifest.version
    with redis_server.client() as client:
        client.hset(hash_key(version, "user"), mapping={"no such token": 3, "u1": 39})
        publish(client, opened)
        assert client.hlen(hash_key(version, "user")) == 40
        assert client.hget(hash_key(version, "user"), "u1") == b"3"


def test_ready_is_not_written_while_the_counts_disagree(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(bundle)
    version = opened.manifest.version
    with redis_server.client() as client:
        publish(client, opened)
        # Another writer adds a token while this one writes.
        monkeypatch.setattr(publishing, "_is_whole", lambda *_: True)
        client.hset(hash_key(version, "user"), "an intruder", 3)
        with pytest.raises(PublishError, match="Run again"):
            publish(client, opened)
        assert not client.exists(ready_key(version))


def test_keep_drops_the_oldest_versions_and_never_the_one_just_published(
    tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_small_bundle(tmp_path / str(seed), seed=seed) for seed in range(4)]
    versions = [open_bundle(folder).manifest.version for folder in folders]
    with redis_server.client() as client:
        for folder in folders:
            assert main([str(folder), "--redis-url", redis_server.url, "--keep", "2"]) == 0
        left: Any = client.keys("ctr:*")
        assert not any(version in key.decode() for key in left for version in versions[:2])
        assert all(client.exists(ready_key(version)) for version in versions[2:])
        assert f"dropped {versions[1]}" in capsys.readouterr().out
        # A clock that went back: others look newer than what was published just now.
        client.zadd(VERSIONS, {versions[2]: 1e12})
        assert main([str(folders[0]), "--redis-url", redis_server.url, "--keep", "1"]) == 0
        members: Any = client.zrange(VERSIONS, 0, -1)
        assert [member.decode() for member in members] == [versions[0]]
        assert client.exists(ready_key(versions[0]))
        assert client.hlen(hash_key(versions[2], "user")) == 0


def test_keep_drops_a_version_that_was_published_in_part(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        client.zadd(VERSIONS, {"0ld": 1.0})
        client.hset(hash_key("0ld", "a field of another schema"), "token", 2)
        publish(client, opened)
        assert drop_older(client, opened.manifest.version, 1) == ["0ld"]
        assert client.keys("ctr:{0ld}:*") == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:secret@127.0.0.1:1/0", "Is it running"),
        ("http://:secret@127.0.0.1/", "is no URL of a Redis"),
        ("redis://:secret/word@127.0.0.1/", "percent-encoded"),
    ],
)
def test_a_redis_that_cannot_be_reached_is_a_sentence(
    bundle: Path, capsys: pytest.CaptureFixture[str], url: str, words: str
) -> None:
    assert main([str(bundle), "--redis-url", url]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "secret" not in error
    assert "Traceback" not in error


def test_a_bundle_that_is_none_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--redis-url", "redis://127.0.0.1:1"]) == 2
    assert "manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--keep", "0"], ["--keep", "many"], []])
def test_arguments_that_make_no_sense_are_refused(bundle: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main([str(bundle), *arguments])
    assert refused.value.code == 2


def test_a_url_with_an_unknown_option_is_a_sentence(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle), "--redis-url", "redis://:a-secret-word@h:6399/0?foo=bar"]) == 2
    said = capsys.readouterr().err
    assert "no URL of a Redis" in said
    assert "secret" not in said
