"""The scoring code that all other servers share, and the plain FastAPI server.

The other frameworks are not installed here.
"""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.schema import FeatureSchema, Field
from loadtest.peers import servers as peers
from loadtest.peers.scoring import MISSING, UNKNOWN, Scorer
from loadtest.peers.servers import PEERS, Peer, PeerFailed, ensure_venv, peer_serving
from loadtest.reference_model import write_plain
from loadtest.servers import free_port
from model.stec.stec import STEC, STECConfig, stec_for
from tests.support.sharing import made_once

# The order differs from that of the model's inputs: a candidate field is between two context fields.
SCHEMA = FeatureSchema((Field("user", "context"), Field("ad", "candidate"), Field("page", "context")))
TOKENS = 12
VOCABULARY = {name: {f"{name}-{token}": token for token in range(2, TOKENS)} for name in ("user", "ad", "page")}
REQUEST: dict[str, Any] = {
    "context": {"user": "user-3", "page": "page-9"},
    "candidates": [
        {"id": "first", "features": {"ad": "ad-2"}},
        {"id": 7, "features": {"ad": "ad-11"}},
        {"id": "unknown", "features": {"ad": "ad-12"}},
        {"id": "without", "features": {}},
    ],
}
IDS = [[3, 2, 9], [3, 11, 9], [3, UNKNOWN, 9], [3, MISSING, 9]]  # ids of REQUEST, in the schema's order
ANONYMOUS: dict[str, Any] = {
    "context": {"page": "unknown"},
    "candidates": [{"id": 1, "features": {"ad": "ad-5"}}],
}
ANONYMOUS_IDS = [[MISSING, 5, UNKNOWN]]


@pytest.fixture(scope="module")
def model() -> STEC:
    torch.manual_seed(0)
    small = stec_for(SCHEMA, [TOKENS] * 3, STECConfig(embedding=4, blocks=1, heads=2, embedding_std=0.5))
    small(torch.randint(TOKENS, (64, 3)), torch.empty(64, 0))
    return small.eval()


@pytest.fixture(scope="module")
def folder(model: STEC, shared_folder: Path) -> Path:
    """The model's files in the form that the other servers load."""

    def make(path: Path) -> None:
        path.mkdir()
        write_plain(model, SCHEMA, VOCABULARY, path)

    return made_once(shared_folder / "peer", make)


def expected(model: STEC, ids: list[list[int]]) -> list[float]:
    with torch.inference_mode():
        ctr: list[float] = model(torch.tensor(ids), torch.empty(len(ids), 0)).double().sigmoid().tolist()
    return ctr


def ctr_of(answer: dict[str, Any]) -> list[float]:
    return [score["ctr"] for score in answer["scores"]]


@pytest.mark.parametrize("graph", ["plain.onnx", "model.onnx"])
def test_the_other_servers_scores_match_the_models(
    model: STEC, folder: Path, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEER_GRAPH", graph)
    answer = Scorer(folder).score(REQUEST)
    assert [score["id"] for score in answer["scores"]] == ["first", 7, "unknown", "without"]
    assert ctr_of(answer) == pytest.approx(expected(model, IDS), abs=1e-6)


def test_unknown_tokens_and_missing_fields_have_their_own_ids(model: STEC, folder: Path) -> None:
    answer = Scorer(folder).score(ANONYMOUS)
    assert ctr_of(answer) == pytest.approx(expected(model, ANONYMOUS_IDS), abs=1e-6)
    unknown, missing = ctr_of(Scorer(folder).score(REQUEST))[2:]
    assert unknown != missing


def test_requests_scored_together_get_the_same_scores_as_alone(folder: Path) -> None:
    scorer = Scorer(folder)
    together = scorer.score_many([REQUEST, ANONYMOUS, REQUEST])
    for answer, request in zip(together, (REQUEST, ANONYMOUS, REQUEST), strict=True):
        alone = scorer.score(request)
        assert [score["id"] for score in answer["scores"]] == [score["id"] for score in alone["scores"]]
        assert ctr_of(answer) == pytest.approx(ctr_of(alone), abs=1e-6)


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    peer, port, log = PEERS["plain FastAPI"], free_port(), tmp_path_factory.mktemp("log") / "peer.log"
    with peer_serving(peer, Path(sys.prefix), folder, port, 1, log, json.dumps(REQUEST).encode()):
        yield f"http://127.0.0.1:{port}/v1/score"


def post(url: str, request: dict[str, Any]) -> Any:
    body = urllib.request.Request(url, json.dumps(request).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(body, timeout=10) as answer:  # noqa: S310  # our own server
        return json.load(answer)


def test_the_plain_server_answers_through_a_socket(model: STEC, folder: Path, url: str) -> None:
    answer = post(url, REQUEST)
    assert answer == Scorer(folder).score(REQUEST)
    assert ctr_of(answer) == pytest.approx(expected(model, IDS), abs=1e-6)
    assert ctr_of(post(url, ANONYMOUS)) == pytest.approx(expected(model, ANONYMOUS_IDS), abs=1e-6)


def test_the_plain_server_reports_what_is_wrong_with_a_request(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, {"context": {}})
    with caught.value as error:
        assert error.code == 422
        assert b"candidates" in error.read()


def test_all_processes_of_a_server_are_stopped_with_it(folder: Path, tmp_path: Path) -> None:
    peer, body = PEERS["plain FastAPI, our graph"], json.dumps(REQUEST).encode()
    with peer_serving(peer, Path(sys.prefix), folder, free_port(), 2, tmp_path / "log", body) as running:
        assert len(peers.marked_processes(running.mark)) >= 3  # the parent and two workers
        assert running.cpu_s() > 0.1
        assert running.memory_mib() > 50
    assert peers.marked_processes(running.mark) == []
    assert running.cpu_s() == 0


def test_a_server_that_does_not_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    """The folder contains no graph."""
    with (
        pytest.raises(PeerFailed, match=r"plain\.onnx"),
        peer_serving(PEERS["plain FastAPI"], Path(sys.prefix), tmp_path, free_port(), 1, tmp_path / "log", b"{}"),
    ):
        pass


def test_an_environment_with_the_same_requirements_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "requirements.txt").write_text("first==1\nsecond==2")
    assert ensure_venv(Peer("there", ("first==1", "second==2"), ("python", "there.py")), tmp_path) == tmp_path / "there"
    assert len(list((tmp_path / "there").iterdir())) == 1
