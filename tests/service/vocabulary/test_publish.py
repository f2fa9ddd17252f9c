"""ctr-publish against a real Redis."""

from pathlib import Path
from typing import Any

import pytest

from contract.bundle import open_bundle
from service.vocabulary import publish as publishing
from service.vocabulary.publish import MODELS, VERSIONS, PublishError, drop_older, main, publish
from service.vocabulary.tiered import hash_key, ready_key
from tests.support.redis_server import RedisServer
from tests.support.small_bundle import write_small_bundle


def test_publishing_prints_counts_and_can_be_repeated(
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


def test_url_can_come_from_the_environment(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTR_REDIS_URL", redis_server.url)
    assert main([str(bundle)]) == 0


def test_vocabulary_is_complete_when_written_in_several_chunks(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CHUNK", 7)
    with redis_server.client() as client:
        assert publish(client, open_bundle(bundle)) == {"user": 40, "weekday": 3, "item": 90, "cost": 3}


def test_leftovers_of_an_interrupted_publication_are_replaced(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    version = opened.manifest.version
    with redis_server.client() as client:
        client.hset(hash_key(version, "user"), mapping={"no such token": 3, "u1": 39})
        publish(client, opened)
        assert client.hlen(hash_key(version, "user")) == 40
        assert client.hget(hash_key(version, "user"), "u1") == b"3"


def test_ready_key_is_not_written_if_the_counts_differ(
    bundle: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(bundle)
    version = opened.manifest.version
    with redis_server.client() as client:
        publish(client, opened)
        # Another writer adds a token at the same time.
        monkeypatch.setattr(publishing, "is_published", lambda *_: True)
        client.hset(hash_key(version, "user"), "an intruder", 3)
        with pytest.raises(PublishError, match="publish again"):
            publish(client, opened)
        assert not client.exists(ready_key(version))


def test_keep_deletes_the_oldest_versions_but_never_the_one_just_published(
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
        # If the clock was set back, another version looks newer than the one just published.
        client.zadd(VERSIONS, {versions[2]: 1e12})
        assert main([str(folders[0]), "--redis-url", redis_server.url, "--keep", "1"]) == 0
        members: Any = client.zrange(VERSIONS, 0, -1)
        assert [member.decode() for member in members] == [versions[0]]
        assert client.exists(ready_key(versions[0]))
        assert client.hlen(hash_key(versions[2], "user")) == 0


def test_keep_deletes_a_partly_published_version(bundle: Path, redis_server: RedisServer) -> None:
    opened = open_bundle(bundle)
    with redis_server.client() as client:
        client.zadd(VERSIONS, {"0ld": 1.0})
        client.hset(MODELS, "0ld", opened.manifest.name)
        client.hset(hash_key("0ld", "a field of another schema"), "token", 2)
        publish(client, opened)
        assert drop_older(client, opened.manifest, 1) == ["0ld"]
        assert client.keys("ctr:{0ld}:*") == []


def test_keep_counts_the_versions_of_each_model_separately(
    tmp_path: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_small_bundle(tmp_path / "other", seed=9, name="other")
    folders = [write_small_bundle(tmp_path / str(seed), seed=seed) for seed in range(3)]
    with redis_server.client() as client:
        client.zadd(VERSIONS, {"from-0.8": 1.0})
        client.set(ready_key("from-0.8"), "{}")
        for folder in (other, *folders):
            assert main([str(folder), "--redis-url", redis_server.url, "--keep", "1"]) == 0
        live = [open_bundle(folder).manifest.version for folder in (other, folders[-1])]
        assert {version for version in live if client.exists(ready_key(version))} == set(live)
        assert client.exists(ready_key("from-0.8"))
        members: Any = client.zrange(VERSIONS, 0, -1)
        assert {member.decode() for member in members} == {*live, "from-0.8"}
        assert client.hlen(MODELS) == 2
    assert "kept 1 versions of unknown models, published before 0.9: from-0.8" in capsys.readouterr().out


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
