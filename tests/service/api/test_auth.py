"""API keys: who has none hears 401, and neither a log nor an answer says a key."""

from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.auth import ApiKeys, KeysError, read_admin_key, read_keys
from service.settings import SettingsError
from tests.support.app import StartApp, a_request, problem

ONE, OTHER = "the-first-secret-key", "the-other-secret-key"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\nshop {ONE}\n\nnews-site {OTHER}\n")
    path.chmod(0o600)
    return path


def test_a_key_has_its_name_in_either_header(file: Path) -> None:
    keys = read_keys(file)
    assert keys.names == ("shop", "news-site")
    assert keys.name_of({"authorization": f"Bearer {ONE}"}) == "shop"
    assert keys.name_of({"authorization": f"bearer  {OTHER} "}) == "news-site"
    assert keys.name_of({"x-api-key": OTHER}) == "news-site"
    assert ONE not in repr(keys)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ONE},
        {"authorization": f"Basic {ONE}"},
        {"authorization": "Bearer "},
        {"x-api-key": ONE[:-1]},
        {"x-api-key": f"{ONE}x"},
        {"x-api-key": "\udcff"},
        {"authorization": "Bearer wrong", "x-api-key": ONE},
    ],
)
def test_what_is_no_key_has_no_name(file: Path, headers: dict[str, str]) -> None:
    assert read_keys(file).name_of(headers) is None


@given(st.text(max_size=30))
def test_only_a_key_itself_is_one(given_key: str) -> None:
    keys = ApiKeys(("one",), (b"\0" * 32,))
    assert keys.name_of({"x-api-key": given_key}) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no key"),
        ("# nothing\n", "has no key"),
        ("shop", "line 1: a key has 16"),
        (f"shop {ONE}\nshop {OTHER}", "line 2: this name or this key is there already"),
        (f"shop {ONE}\nnews {ONE}", "line 2: this name or this key is there already"),
        (f"a/b {ONE}", "line 1: begin with a name"),
        ("shop short", "line 1: a key has 16"),
        (f"shop {ONE} {OTHER}", "line 1: a key has 16"),
        (f"shop {'x' * 600}", "line 1: a key has 16"),
        (f"shop {ONE}\n{'# no key' * 131_072}", "more than 1048576 bytes"),
    ],
)
def test_a_bad_file_names_the_line_and_no_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(KeysError, match=words) as raised:
        read_keys(path)
    assert ONE not in str(raised.value)


def test_an_admin_key_is_alone_in_its_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(f"{ONE}\n")
    assert read_admin_key(tmp_path / "admin").name_of({"x-api-key": ONE}) == "admin"
    (tmp_path / "admin").write_text(f"{ONE}\n{OTHER}\n")
    with pytest.raises(KeysError, match="has 2 lines"):
        read_admin_key(tmp_path / "admin")
    with pytest.raises(KeysError, match="No such file"):
        read_admin_key(tmp_path / "none")


def test_a_file_that_all_can_read_is_in_the_log(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_keys(file)
    assert caplog.text == ""
    file.chmod(0o644)
    read_keys(file)
    assert "can be read by everybody" in caplog.text


async def test_without_a_key_scores_are_a_401_and_the_probes_are_free(start: StartApp, file: Path) -> None:
    async with start(api_keys_file=file) as client:
        for headers in ({}, {"X-Api-Key": "not-the-right-secret"}):
            for path in ("/v1/score", "/v1/explain"):
                refused = await client.post(path, json=a_request(), headers=headers)
                problem(refused, 401, None, "Authorization: Bearer KEY")
                assert refused.headers["www-authenticate"] == "Bearer"
        problem(await client.get("/v1/model"), 401, None, "API key")
        for free in ("/livez", "/readyz", "/metrics", "/openapi.json"):
            assert (await client.get(free)).status_code == 200
        answer = await client.post("/v1/score", json=a_request(), headers={"Authorization": f"Bearer {ONE}"})
        assert answer.status_code == 200
        assert (await client.get("/v1/model", headers={"X-Api-Key": OTHER})).status_code == 200


async def test_requests_are_counted_by_the_name_of_their_key(start: StartApp, file: Path) -> None:
    async with start(api_keys_file=file) as client:
        for headers in ({"X-Api-Key": ONE}, {"X-Api-Key": ONE}, {"X-Api-Key": "nobody's-key-at-all"}):
            await client.post("/v1/score", json=a_request(), headers=headers)
        await client.post("/v1/score", content=b"{", headers={"X-Api-Key": OTHER, "Content-Type": "application/json"})
        counted = (await client.get("/metrics")).text
    assert 'ctr_requests_by_key_total{key="shop",outcome="ok"} 2.0' in counted
    assert 'ctr_requests_by_key_total{key="",outcome="unauthorised"} 1.0' in counted
    assert 'ctr_requests_by_key_total{key="news-site",outcome="bad_request"} 1.0' in counted
    assert "secret" not in counted


async def test_without_a_file_nobody_is_asked(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/score", json=a_request())).status_code == 200
    assert "ctr_requests_by_key_total{" not in (await client.get("/metrics")).text


async def test_a_bad_file_stops_the_start(start: StartApp, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        async with start(api_keys_file=tmp_path / "none"):
            pass
