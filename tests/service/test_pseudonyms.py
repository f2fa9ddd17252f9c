"""From a log with user ids to a served model that has never seen one: no written file has a raw value."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from contract.bundle import GOLDEN, BundleError, open_bundle
from contract.encode import Encoder
from contract.golden import read_golden
from contract.pseudonyms import Pseudonymizer, is_pseudonym
from contract.schema import read_schema
from export.cli.explain import main as explain
from export.cli.export import main as export
from export.cli.predict import main as predict
from loadtest.openloop.bodies import prepare as draw_requests
from model.cli.prepare import main as prepare
from model.cli.train import main as train
from model.data.prepare.prepared import read_prepared
from model.experiments.run_folder import check_log_of_run, open_run
from model.training.batches import Split
from model.training.fit import predict as predict_rows
from service.app import create_app
from service.models import store as stores
from service.models import verify
from service.settings import Settings, SettingsError
from service.vocabulary.publish import publish
from tests.support.app import StartApp, app_of
from tests.support.processes import KEEPS_PRIORITY, another_bundle, eventually, metric, served_version, serving
from tests.support.redis_server import RedisServer
from tests.support.request_log import read_log
from tests.support.sharing import made_once

USERS = [f"zq-person-{number:03}" for number in range(12)]
SITES = [7_310_000_000_001 + 17 * number for number in range(9)]
KEY, OTHER_KEY = "0123456789abcdef of a test", "fedcba9876543210 of a test"
PSEUDONYMS = Pseudonymizer(KEY.encode())
EXPERIMENT = """
name = "{name}"
[data]
reader = "table"
folder = "raw"
prepared = "{name}/prepared"
train = "train.parquet"
valid = "valid.parquet"
test = "test.parquet"
label = "click"
unit = "user"
[[data.fields]]
name = "user"
side = "context"
missing = ["nobody"]
{pseudonym}
[[data.fields]]
name = "hour"
side = "context"
[[data.fields]]
name = "ad"
side = "candidate"
[[data.fields]]
name = "publisher"
side = "candidate"
from = "site"
{pseudonym}
[model]
embedding = 4
blocks = 1
ffn = 8
[training]
epochs = 2
batch_size = 64
"""


def write_log(folder: Path) -> None:
    """Write a log in which no two users, and no two sites, are equally frequent in train."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for split, factor in (("train", 3), ("valid", 1), ("test", 1)):
        users = [user for number, user in enumerate(USERS) for _ in range(factor * (number + 3))] + ["nobody"] * 9
        rows = len(users)
        sites = [site for number, site in enumerate(SITES) for _ in range(factor * (2 * number + 1))]
        order = random.permutation(rows).tolist()
        pl.DataFrame(
            {
                "click": (random.random(rows) < 0.2 + 0.5 * np.isin(users, USERS[:6])).astype(int),
                "user": random.permutation(users),
                "hour": random.integers(0, 5, rows),
                "ad": [f"a{number}" for number in random.integers(0, 10, rows)],
                # An int64 column with missing values.
                "site": [sites[row] if row < len(sites) else None for row in order],
            }
        ).write_parquet(folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def root(shared_folder: Path) -> Path:
    """A folder with a log, a run with pseudonyms ("secret") and its bundle, and a run without ("plain")."""

    def make(folder: Path) -> None:
        folder.mkdir()
        write_log(folder / "raw")
        (folder / "key").write_text(f"{KEY}\n")
        (folder / "key").chmod(0o600)
        for name, pseudonym, key in (
            ("secret", 'pseudonym = "hmac"', ["--pseudonym-key", str(folder / "key")]),
            ("plain", "", []),
        ):
            (folder / f"{name}.toml").write_text(EXPERIMENT.format(name=name, pseudonym=pseudonym))
            toml, data = str(folder / f"{name}.toml"), ["--data", str(folder)]
            assert prepare([toml, *data, *key]) == 0
            assert train([toml, *data, "--out", str(folder / name / "run")]) == 0
        assert export([str(folder / "secret" / "run"), str(folder / "secret" / "bundle"), *data]) == 0

    return made_once(shared_folder / "pseudonyms", make)


@pytest.fixture
def other_key(tmp_path: Path) -> Path:
    (tmp_path / "other-key").write_text(OTHER_KEY)
    return tmp_path / "other-key"


def raw_values_in(content: bytes) -> list[str]:
    """Return the raw values in a text or binary file."""
    texts = [text for text in (*USERS, *map(str, SITES)) if text.encode() in content]
    return texts + [f"{site} as int64" for site in SITES if struct.pack("<q", site) in content]


def found_below(*folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [f"{path.name}: {found}" for path in files for found in raw_values_in(path.read_bytes())]


def a_body(user: Any) -> dict[str, Any]:
    return {"context": {"user": user}, "candidates": [{"id": 1, "features": {"site": 8}}]}


def requests() -> Iterator[dict[str, Any]]:
    """Yield requests with known, unknown and missing values of all types."""
    for user in (*USERS[:4], f" {USERS[4]} ", "zq-person-999", "nobody", None, 12):
        sites = [*SITES[:3], float(SITES[3]), str(SITES[4]), None, 5, True]
        candidates = [{"id": n, "features": {"ad": f"a{n}", "site": site}} for n, site in enumerate(sites)]
        yield {"context": {"user": user, "hour": 3}, "candidates": candidates}


async def test_requests_get_the_probabilities_of_the_model_without_pseudonyms(root: Path, start: StartApp) -> None:
    # The vocabularies have the same order, because no two values are equally frequent. So both runs are the same model.
    plain = Split(*read_prepared(root / "plain" / "prepared").split("test"))
    expected = predict_rows(open_run(root / "plain" / "run")[0], plain)
    test = pl.read_parquet(root / "raw" / "test.parquet")
    async with start(bundle=root / "secret" / "bundle", pseudonym_key_file=root / "key") as client:
        for row, shown in enumerate(test.head(60).iter_rows(named=True)):
            features = {"ad": shown["ad"], "site": shown["site"]}
            body = {
                "context": {"user": shown["user"], "hour": shown["hour"]},
                "candidates": [{"id": 1, "features": features}],
            }
            answer = (await client.post("/v1/score", json=body)).json()
            assert answer["scores"][0]["ctr"] == pytest.approx(expected[row], rel=1e-4, abs=1e-6)


def test_no_file_of_training_or_of_the_bundle_has_a_raw_value(root: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(f"user={USERS[3]};site={SITES[5]}")
    (tmp_path / "binary").write_bytes(np.array(SITES[:1]).tobytes())
    assert len(found_below(tmp_path)) == 3  # The search finds what there is.
    assert found_below(root / "secret") == []
    # A trie may share parts of tokens, so the search alone would not be enough.
    vocabularies = open_bundle(root / "secret" / "bundle").vocabularies
    for name, values in (("user", USERS), ("publisher", map(str, SITES))):
        stored = [token for token, _ in sorted(vocabularies[name].items(), key=lambda item: item[1])]
        assert stored == [PSEUDONYMS.pseudonym(value) for value in reversed([*values])]


def test_missing_values_are_recognized_before_they_are_hashed(root: Path) -> None:
    missing = [read_prepared(root / name / "prepared").facts.missing for name in ("secret", "plain")]
    assert missing[0] == missing[1]
    assert missing[0]["user"] > 0


def test_the_golden_requests_hold_pseudonyms_and_need_no_key(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = open_bundle(root / "secret" / "bundle")
    assert bundle.manifest.format_version == 4
    values = {request.context.get("user") for request in read_golden(bundle.folder / GOLDEN)} - {None}
    assert len(values) > 12
    assert all(is_pseudonym(str(value)) for value in values)
    assert verify.main([str(bundle.folder)]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert len(draw_requests([bundle], {5: 20}, timeout_ms=None)) == 20


async def test_the_request_log_and_its_replay_have_pseudonyms(root: Path, start: StartApp, tmp_path: Path) -> None:
    settings = {"request_log": tmp_path / "log", "request_log_sample": 1.0, "pseudonym_key_file": root / "key"}
    async with start(bundle=root / "secret" / "bundle", **settings) as client:
        for request in requests():
            request["unit"] = USERS[0]
            # On the wrong side, the name is not a field, but it may still hold the same value.
            request["candidates"][0]["features"]["user"] = USERS[0]
            assert (await client.post("/v1/score", json=request)).status_code == 200
        answer = await client.post("/v1/score", json=a_body([USERS[0]]))
        assert answer.status_code == 422
        assert raw_values_in(answer.content) == []
    assert found_below(tmp_path / "log") == []
    lines = read_log(tmp_path / "log")
    assert lines[0].context
    assert lines[6].context
    assert lines[0].candidates
    assert lines[0].context["user"] == PSEUDONYMS.pseudonym(USERS[0])
    assert lines[6].context["user"] is None
    assert lines[0].candidates[3].features["site"] == PSEUDONYMS.pseudonym(str(SITES[3]))
    assert lines[0].unit == PSEUDONYMS.pseudonym(USERS[0])
    assert lines[0].hashed == []
    assert verify.main([str(root / "secret" / "bundle"), "--log", str(tmp_path / "log")]) == 0


async def test_a_log_with_raw_values_is_replayed_with_the_key(
    root: Path, start: StartApp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"request_log": tmp_path, "request_log_sample": 1.0, "pseudonym_key_file": root / "key"}
    async with start(bundle=root / "secret" / "bundle", **settings) as client:
        for request in requests():
            assert (await client.post("/v1/score", json=request)).status_code == 200
    (log,) = tmp_path.glob("*.ndjson")
    for raw in (*USERS, *map(str, SITES)):
        log.write_text(log.read_text().replace(PSEUDONYMS.pseudonym(raw), raw))
    assert raw_values_in(log.read_bytes()) != []
    replay = [str(root / "secret" / "bundle"), "--log", str(tmp_path)]
    assert verify.main([*replay, "--pseudonym-key", str(root / "key")]) == 0
    assert "9 requests, 72 candidates compared\n  difference: largest 0," in capsys.readouterr().out
    assert verify.main(replay) == 0
    assert "compared only with --pseudonym-key FILE" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        verify.main([replay[0], "--pseudonym-key", str(root / "key")])


async def test_a_field_with_pseudonyms_is_not_hashed_again_in_the_log(
    root: Path, start: StartApp, tmp_path: Path
) -> None:
    settings = {"request_log": tmp_path / "log", "request_log_sample": 1.0, "pseudonym_key_file": root / "key"}
    settings |= {"request_log_hash": "user,ad", "request_log_salt_file": root / "key"}
    async with start(bundle=root / "secret" / "bundle", **settings) as client:
        assert (await client.post("/v1/score", json=next(requests()))).status_code == 200
    (line,) = read_log(tmp_path / "log")
    assert line.context
    assert line.candidates
    assert line.hashed == ["ad"]
    assert line.context["user"] == PSEUDONYMS.pseudonym(USERS[0])
    assert line.candidates[0].features["ad"].startswith("h:")


async def test_a_failed_request_is_not_logged_with_its_values(
    root: Path, start: StartApp, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"pseudonym_key_file": root / "key", "log_values": True}
    async with start(bundle=root / "secret" / "bundle", **settings) as client:
        assert "CTR_LOG_VALUES has no effect" in caplog.text
        scorer = app_of(client).state.serving.model.scorer

        def fail(*_: Any) -> None:
            raise RuntimeError(f"a fault while reading {USERS[0]}")

        monkeypatch.setattr(scorer.encoder, "wanted", fail)
        assert (await client.post("/v1/score", json=next(requests()))).status_code == 500
    assert "failed" in caplog.text
    assert raw_values_in(caplog.text.encode()) == []
    assert all(raw_values_in(str(record.__dict__.get("fields")).encode()) == [] for record in caplog.records)


@pytest.mark.parametrize("with_key", [False, True], ids=["no key", "another key"])
async def test_a_server_without_the_right_key_refuses_the_bundle(
    root: Path, start: StartApp, other_key: Path, with_key: bool
) -> None:
    key = other_key if with_key else None
    app = create_app(Settings(bundle=root / "secret" / "bundle", pseudonym_key_file=key))
    with pytest.raises(BundleError, match=r'pseudonyms in "user", "publisher".*CTR_PSEUDONYM_KEY_FILE'):
        async with app.router.lifespan_context(app):
            pass
    async with start(pseudonym_key_file=key) as client:
        manager = app_of(client).state.serving
        served = manager.model.version
        assert "CTR_PSEUDONYM_KEY_FILE" in await manager.load(root / "secret" / "bundle")
        assert manager.model.version == served


async def test_a_key_is_fine_for_a_bundle_without_pseudonyms(root: Path, start: StartApp, tmp_path: Path) -> None:
    async with start(pseudonym_key_file=root / "key") as client:
        manager = app_of(client).state.serving
        assert await manager.load(another_bundle(tmp_path / "another")) is None
        assert await manager.load(root / "secret" / "bundle") is None
        fields = {field["name"]: field for field in (await client.get("/v1/model")).json()["fields"]}
        assert fields["user"]["pseudonym"] == "hmac"
        assert "pseudonym" not in fields["hour"]


async def test_a_bad_key_file_stops_the_start(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("short")
    app = create_app(Settings(bundle=bundle, pseudonym_key_file=tmp_path / "short"))
    with pytest.raises(SettingsError, match=r"CTR_PSEUDONYM_KEY_FILE: .*short has 5 bytes"):
        async with app.router.lifespan_context(app):
            pass


def test_the_key_is_changed_without_downtime_through_the_store(root: Path, bundle: Path, tmp_path: Path) -> None:
    """As docs/privacy.md describes: the old servers keep the old version, and restarted ones open the new one."""
    store, secret = str(tmp_path / "store"), root / "secret" / "bundle"
    small, new = (open_bundle(folder).manifest.version for folder in (bundle, secret))
    assert stores.main(["add", store, str(bundle), "--activate"]) == 0
    with serving("", KEEPS_PRIORITY, CTR_STORE=store, CTR_WORKERS="1") as server:
        assert stores.main(["add", store, str(secret), "--activate", "--force"]) == 0  # a model of few rows
        eventually(lambda: metric(server.url, "ctr_current_refused") == 1, "the new version is refused")
        assert served_version(server.url) == small
    with serving(
        "", KEEPS_PRIORITY, CTR_STORE=store, CTR_WORKERS="1"
    ) as server:  # restarted by accident with the old setting
        assert served_version(server.url) == small
    with serving(
        "", KEEPS_PRIORITY, CTR_STORE=store, CTR_WORKERS="1", CTR_PSEUDONYM_KEY_FILE=str(root / "key")
    ) as server:
        assert served_version(server.url) == new


async def test_redis_gets_only_pseudonyms(root: Path, start: StartApp, redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        publish(client, open_bundle(root / "secret" / "bundle"))
        stored = [key + b" ".join(client.hkeys(key)) for key in client.scan_iter() if client.type(key) == b"hash"]
    assert PSEUDONYMS.pseudonym(USERS[0]).encode() in b" ".join(stored)
    settings = {"vocabulary": "redis", "redis_url": redis_server.url, "redis_timeout_ms": 1000}
    async with start(bundle=root / "secret" / "bundle", pseudonym_key_file=root / "key", **settings) as served:
        body = (await served.post("/v1/score", json=next(requests()))).json()
        assert body["degraded"] == []
    with redis_server.client() as client:
        keys = b" ".join(client.scan_iter())
    assert raw_values_in(b" ".join([*stored, keys])) == []


def test_commands_read_raw_values_with_the_key_only(
    root: Path, tmp_path: Path, other_key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bundle, files = tmp_path / "out.csv", str(root / "secret" / "bundle"), str(root / "raw" / "test.parquet")
    key = ["--pseudonym-key", str(root / "key")]
    plain = tmp_path / "plain.csv"
    assert predict([str(root / "plain" / "run"), files, "--out", str(plain), "--keep", "ad"]) == 0
    assert predict([str(root / "secret" / "run"), files, "--out", str(out), "--keep", "ad", *key]) == 0
    assert out.read_text() == plain.read_text()
    capsys.readouterr()
    assert predict([bundle, files, "--out", str(tmp_path / "a.csv")]) == 2
    assert "CTR_PSEUDONYM_KEY_FILE" in capsys.readouterr().err
    assert predict([bundle, files, "--out", str(tmp_path / "b.csv"), "--pseudonym-key", str(other_key)]) == 2
    assert PSEUDONYMS.fingerprint in capsys.readouterr().err
    assert predict([bundle, files, "--out", str(tmp_path / "c.csv"), "--keep", "user", *key]) == 2
    assert "--keep user" in capsys.readouterr().err
    assert found_below(tmp_path) == []


def test_an_explanation_shows_pseudonyms(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = tmp_path / "body.json"
    body.write_bytes(msgspec.json.encode(a_body(USERS[1])))
    bundle, key = str(root / "secret" / "bundle"), ["--pseudonym-key", str(root / "key")]
    assert explain([bundle, str(body), "--out", str(tmp_path / "out"), *key]) == 0
    written = "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))
    assert PSEUDONYMS.pseudonym(USERS[1]) in written
    assert f"(unknown) {PSEUDONYMS.pseudonym('8')}" in written
    assert found_below(tmp_path / "out") == []
    body.write_bytes(msgspec.json.encode(a_body([USERS[1]])))
    assert explain([bundle, str(body), *key]) == 2
    assert explain([bundle, str(body)]) == 2
    assert raw_values_in("".join(capsys.readouterr()).encode()) == []
    assert explain([bundle, "--golden", "2"]) == 0


def test_a_log_is_prepared_with_a_key_and_anew_with_another(
    root: Path, tmp_path: Path, other_key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").symlink_to(root / "raw")
    arguments = [str(root / "secret.toml"), "--data", str(tmp_path)]
    assert prepare(arguments) == 2
    assert '"user", "publisher" needs a key' in capsys.readouterr().err
    assert not (tmp_path / "secret").exists()
    assert prepare([str(root / "plain.toml"), "--data", str(tmp_path), "--pseudonym-key", str(other_key)]) == 2
    assert "--pseudonym-key has no effect" in capsys.readouterr().err
    assert prepare([*arguments, "--pseudonym-key", str(other_key)]) == 0
    assert raw_values_in("".join(capsys.readouterr()).encode()) == []
    schema = read_schema(tmp_path / "secret" / "prepared" / "schema.json")
    assert schema.pseudonym_key == Pseudonymizer(OTHER_KEY.encode()).fingerprint
    # A run of the earlier key does not fit this log.
    run, data = root / "secret" / "run", ["--data", str(tmp_path)]
    with pytest.raises(ValueError, match="is not the log that"):
        check_log_of_run(run, read_prepared(tmp_path / "secret" / "prepared"))
    assert train([str(root / "secret.toml"), *data, "--out", str(tmp_path / "run"), "--warm", str(run)]) == 2
    assert "another key" in capsys.readouterr().err


def test_a_value_that_cannot_be_a_token_is_not_shown(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    for split in ("train", "valid", "test"):
        frame = pl.read_parquet(root / "raw" / f"{split}.parquet")
        frame.with_columns(pl.col("user") + "\0").write_parquet(tmp_path / "raw" / f"{split}.parquet")
    key = ["--pseudonym-key", str(root / "key")]
    assert prepare([str(root / "secret.toml"), "--data", str(tmp_path), *key]) == 2
    error = capsys.readouterr().err
    assert (
        'train.parquet, row 1: column "user" holds a value that may not be shown; a token cannot contain NUL' in error
    )
    assert raw_values_in(error.encode()) == []


def test_the_server_reads_what_training_read(root: Path) -> None:
    """The prepared ids of the test rows are those that the server's encoder gives to the raw values."""
    bundle = open_bundle(root / "secret" / "bundle")
    encoder = Encoder(bundle.schema, pseudonyms=PSEUDONYMS)
    rows = pl.read_parquet(root / "raw" / "test.parquet").select("user", "hour", "ad", "site").to_dicts()
    model_input = encoder.rows(rows, rows, bundle.vocabularies)
    ids = np.concatenate([model_input.context_ids, model_input.candidate_ids], axis=1)
    names = [field.name for field in bundle.schema.in_serving_order()]
    prepared = read_prepared(root / "secret" / "prepared")
    order = [names.index(field.name) for field in prepared.schema.select("categorical")]
    np.testing.assert_array_equal(ids[:, order], prepared.split("test")[0])
