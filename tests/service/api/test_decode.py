"""Decoding bodies from a hostile client: any bytes give a request or raise a Problem, but no other exception."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.decode import decode_score_request
from service.api.schemas import ScoreRequest
from service.errors import BadRequest, NotJson, Problem
from tests.support.app import a_request
from tests.support.examples import examples

MAX_CANDIDATES = 1000
VALID = json.dumps(a_request(timeout_ms=50, on_bad_candidate="skip")).encode()
PIECES = [
    *(b"1e999", b"{", b"}", b"[", b"]", b",", b":", b'"', b"\xff", b"\\ud800", b"\\", b"null", b"[]", b"{}", b"3"),
    *(b"[" * 50_000, b"9" * 5000, b'"features":3', b'"candidates":[]', b'"context":{"a":1e999}', b'"top_k":1'),
    *(b'"on_bad_candidate":"skip"', b'"on_bad_candidate":"refuse"', b'"x - at `$.candidates[99][...]`":1'),
]


def refused(body: bytes) -> Problem:
    with pytest.raises(Problem) as problem:
        decode_score_request(body, MAX_CANDIDATES)
    return problem.value


@pytest.mark.parametrize(
    "body",
    [
        b'{"context":{"a":1e999}, garbage',
        b'{"context":{},"candidates":[{"id":1,"features":{"item":1e999}},',
        b'{"context":{},"candidates":[{"id":1,"features":{"item":1e999}},3',
        b'{"context":[], "candidates":[{"id":1,"features":{"item":"\xff"}}]}',
        b'{"context":{"a":"\xff"},"candidates":[{"id":1,"features":[]}],"on_bad_candidate":"skip"}',
        b'{"context":{},"candidates":[{"id":1,"features":[]},{"id":2,"features":{"a":"\xff"}}],"on_bad_candidate":"skip"}',
        rb'{"context":{},"candidates":[{"id":1,"features":[]},{"id":2,"features":{"a":"\ud800xxxxxxx"}}],'
        rb'"on_bad_candidate":"skip"}',
    ],
)
def test_a_body_that_is_not_json_is_a_400_whatever_else_is_wrong_with_it(body: bytes) -> None:
    assert isinstance(refused(body), NotJson)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"context":{},"candidates":[{"id":1,"features":{"item":1e999}},3]}', "$.candidates[0].features"),
        (
            b'{"context":{},"candidates":[{"id":1,"features":{"item":1e999}}],"candidates":[]}',
            "$.candidates[0].features",
        ),
        (b'{"context":{},"candidates":[{"id":1,"features":{"item":1e999},"features":3}]}', "$.candidates[0].features"),
        (b'{"context":{"a":1e999},"context":3,"candidates":[]}', "$.context"),
        (b'{"context":{"a":1e999},"candidates":[{"id":1,"features":{"a":' + b"[" * 50_000 + b"}}]}", "$"),
        (b'{"context":{},"x - at `$.candidates[99][...]`":1}', "$.x - at `$.candidates[99][...]`"),
        (b'{"context":{},"x - at `$[...]`":{"a":1e999}}', "$.x - at `$[...]`"),
        (b'{"context":{},"candidates":[],"on_bad_candidate":"x\' - at `$.candidates[9][...]`"}', "$.candidates"),
        (b'{"context":{},"on_bad_candidate":"x\' - at `$.candidates[9][...]`"}', "$.on_bad_candidate"),
    ],
)
def test_a_bad_request_with_several_errors_is_still_a_422_with_a_path(body: bytes, path: str) -> None:
    problem = refused(body)
    assert isinstance(problem, BadRequest)
    assert problem.path == path


@settings(deadline=None, max_examples=examples(300))
@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_a_problem(body: bytes) -> None:
    give_a_request_or_a_problem(body)


@settings(deadline=None, max_examples=examples(1000))
@given(st.data())
def test_any_change_to_a_valid_body_gives_a_request_or_a_problem(data: st.DataObject) -> None:
    body = VALID
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 40)))
        body = body[:start] + data.draw(st.sampled_from(PIECES) | st.binary(max_size=3)) + body[end:]
    give_a_request_or_a_problem(body)


VALUES = st.sampled_from(["1", '"x"', "1e999", "[]", "{}", '"\\ud800"', "null", "9" * 5000, "[" * 2000])
OBJECTS = st.lists(st.tuples(st.sampled_from(["item", "cost", "a"]), VALUES), max_size=3).map(
    lambda pairs: "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"
)


@settings(deadline=None, max_examples=examples(500))
@given(
    context=OBJECTS,
    features=st.lists(OBJECTS | VALUES, max_size=3),
    extra=st.lists(st.sampled_from(PIECES), max_size=2),
)
def test_any_mix_of_bad_values_and_names_gives_a_request_or_a_problem(
    context: str, features: list[str], extra: list[bytes]
) -> None:
    candidates = ",".join(f'{{"id":1,"features":{value}}}' for value in features)
    body = f'{{"context":{context},"candidates":[{candidates}]'.encode()
    give_a_request_or_a_problem(b",".join([body, *extra]) + b"}")


def give_a_request_or_a_problem(body: bytes) -> None:
    try:
        request, bad = decode_score_request(body, MAX_CANDIDATES)
    except Problem:
        return
    assert isinstance(request, ScoreRequest)
    assert not bad or request.on_bad_candidate == "skip"


@pytest.mark.timing
def test_too_many_candidates_are_refused_before_they_are_decoded() -> None:
    candidate = b'{"id":1,"features":[]},'
    body = b'{"context":{},"on_bad_candidate":"skip","candidates":[' + (candidate * 91_000)[:-1] + b"]}"
    start_s = time.perf_counter()
    problem = refused(body)
    assert time.perf_counter() - start_s < 0.2
    assert problem.detail.startswith("91000 candidates exceed this server's limit of 1000")


def test_a_message_quotes_only_the_beginning_of_a_long_name() -> None:
    long = b"x" * 5000
    for body in (
        b'{"context":{"%b":1e999},"candidates":[{"id":1,"features":{}}]}' % long,
        b'{"context":{},"%b":1}' % long,
        b'{"context":{},"on_bad_candidate":"%b"}' % long,
    ):
        problem = refused(body)
        assert len(problem.detail) < 500
        assert len(problem.path or "") < 200
