"""API keys: a request without a key gets a 401, and no log or response ever contains a key."""

from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.auth import ApiKeys, KeysError, read_admin_key, read_keys
from service.settings import SettingsError
from tests.support.app import StartApp, a_request, problem

FIRST, SECOND = "the-first-secret-key", "the-other-secret-key"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# clients\nshop {FIRST}\n\nnews-site {SECOND}\n")
    path.chmod(0o600)
    return path


def test_name_of_finds_the_key_in_either_header(file: Path) -> None:
    keys = read_keys(file)
    assert keys.names == ("shop", "news-site")
    assert keys.name_of({"authorization": f"Bearer {FIRST}"}) == "shop"
    assert keys.name_of({"authorization": f"bearer  {SECOND} "}) == "news-site"
    assert keys.name_of({"x-api-key": SECOND}) == "news-site"
    assert FIRST not in repr(keys)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": FIRST},
        {"authorization": f"Basic {FIRST}"},
        {"authorization": "Bearer "},
        {"x-api-key": FIRST[:-1]},
        {"x-api-key": f"{FIRST}x"},
        {"x-api-key": "\udcff"},
        {"authorization": "Bearer wrong", "x-api-key": FIRST},
    ],
)
def test_name_of_returns_none_for_an_invalid_key(file: Path, headers: dict[str, str]) -> None:
    assert read_keys(file).name_of(headers) is None


@given(st.text(max_size=30))
def test_no_other_text_is_accepted_as_a_key(given_key: str) -> None:
    keys = ApiKeys(("client",), (b"\0" * 32,))
    assert keys.name_of({"x-api-key": given_key}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no key"),
        ("# nothing\n", "contains no key"),
        ("shop", "keys:1: the key must be 16"),
        (f"shop {FIRST}\nshop {SECOND}", "keys:2: this name or this key is already"),
        (f"shop {FIRST}\nnews {FIRST}", "keys:2: this name or this key is already"),
        (f"a/b {FIRST}", "keys:1: the name must be 1 to 64"),
        ("shop short", "keys:1: the key must be 16"),
        (f"shop {FIRST} {SECOND}", "keys:1: the key must be 16"),
        (f"shop {'x' * 600}", "keys:1: the key must be 16"),
        (f"shop {FIRST}\n{'# no key' * 131_072}", "larger than 1048576 bytes"),
    ],
)
def test_the_error_for_a_bad_file_names_the_line_but_no_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(KeysError, match=message) as raised:
        read_keys(path)
    assert FIRST not in str(raised.value)


def test_the_admin_key_must_be_alone_in_its_file(file: Path, tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(f"{FIRST}\n")
    assert read_admin_key(tmp_path / "admin").name_of({"x-api-key": FIRST}) == "admin"
    (tmp_path / "admin").write_text(f"{FIRST}\n{SECOND}\n")
    with pytest.raises(KeysError, match="found 2 keys; expected one"):
        read_admin_key(tmp_path / "admin")
    with pytest.raises(KeysError, match="No such file"):
        read_admin_key(tmp_path / "none")


def test_a_file_that_every_user_can_read_causes_a_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_keys(file)
    assert caplog.text == ""
    file.chmod(0o644)
    read_keys(file)
    assert "readable by every user" in caplog.text


async def test_without_a_key_the_api_returns_401_and_the_probes_return_200(start: StartApp, file: Path) -> None:
    async with start(api_keys_file=file) as client:
        for headers in ({}, {"X-Api-Key": "not-the-right-secret"}):
            for path in ("/v1/score", "/v1/explain"):
                refused = await client.post(path, json=a_request(), headers=headers)
                problem(refused, 401, None, "Authorization: Bearer KEY")
                assert refused.headers["www-authenticate"] == "Bearer"
        problem(await client.get("/v1/model"), 401, None, "API key")
        for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        answer = await client.post("/v1/score", json=a_request(), headers={"Authorization": f"Bearer {FIRST}"})
        assert answer.status_code == 200
        assert (await client.get("/v1/model", headers={"X-Api-Key": SECOND})).status_code == 200


async def test_requests_are_counted_by_the_name_of_their_key(start: StartApp, file: Path) -> None:
    async with start(api_keys_file=file) as client:
        for headers in ({"X-Api-Key": FIRST}, {"X-Api-Key": FIRST}, {"X-Api-Key": "not-one-of-the-keys"}):
            await client.post("/v1/score", json=a_request(), headers=headers)
        await client.post("/v1/score", content=b"{", headers={"X-Api-Key": SECOND, "Content-Type": "application/json"})
        counted = (await client.get("/metrics")).text
    assert 'ctr_requests_by_key_total{key="shop",outcome="ok"} 2.0' in counted
    assert 'ctr_requests_by_key_total{key="",outcome="unauthorized"} 1.0' in counted
    assert 'ctr_requests_by_key_total{key="news-site",outcome="bad_request"} 1.0' in counted
    assert "secret" not in counted


async def test_without_a_key_file_no_key_is_required(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/score", json=a_request())).status_code == 200
    assert "ctr_requests_by_key_total{" not in (await client.get("/metrics")).text


async def test_the_server_does_not_start_with_a_bad_file(start: StartApp, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        async with start(api_keys_file=tmp_path / "none"):
            pass
