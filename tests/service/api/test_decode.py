"""Decoding bodies from a hostile client: any bytes give a request or raise a Problem, but no other exception."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.decode import decode_explain_request, decode_score_request, unit_token
from service.api.schemas import ScoreRequest
from service.errors import BadRequest, NotJson, Problem
from tests.support.app import a_request
from tests.support.examples import examples
from tests.support.timing import shortest_cpu_s

MAX_CANDIDATES = 1000
VALID = json.dumps(a_request(timeout_ms=50, on_bad_candidate="skip")).encode()
PIECES = [
    *(b"1e999", b"{", b"}", b"[", b"]", b",", b":", b'"', b"\xff", b"\\ud800", b"\\", b"null", b"[]", b"{}", b"3"),
    *(b"[" * 50_000, b"9" * 5000, b'"features":3', b'"candidates":[]', b'"context":{"a":1e999}', b'"top_k":1'),
    *(b'"unit":1', b'"unit":"u"'),
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
        b'{"context":{"a":"\xff"},"candidates":[{"id":1,"features":[]}],"on_bad_candidate":"skip"}',
        rb'{"context":{"a":"\x"},"candidates":[{"id":1,"features":{}}],"on_bad_candidate":"skip"}',
        b'{"context":{},"candidates":[{"id":1,"features":{"a":NaN}}],"on_bad_candidate":"skip"',
        b'{"context":{},"candidates":[{"id":1,"features":{"a":NaN}}],"on_bad_candidate":NaN}',
        b'{"context":{},"candidates":[{"id":1,"features":{"a":"say "hi""}}],"on_bad_candidate":"skip"}',
        b"context=1&candidates=2",
        b"NaN",
    ],
)
def test_a_body_that_is_not_json_is_a_400_whatever_else_is_wrong_with_it(body: bytes) -> None:
    assert isinstance(refused(body), NotJson)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"context":{},"candidates":[{"id":1,"features":{"item":1e999}},3]}', "$.candidates[0].features.item"),
        (
            b'{"context":{},"candidates":[{"id":1,"features":{"item":1e999}}],"candidates":[]}',
            "$.candidates",
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


GOOD = '{"id": 1, "features": {"item": 4082}}'


def body_with(*candidates: str, **options: Any) -> bytes:
    rest = "".join(f', "{name}": {json.dumps(value)}' for name, value in options.items())
    return f'{{"context": {{"user": "u1"}}, "candidates": [{", ".join(candidates)}]{rest}}}'.encode()


@pytest.mark.timing
@pytest.mark.parametrize(
    "text", [rb"\ud83d", rb"\udc00", rb"\\", rb"\n", rb"\u0041", rb"\ud83d\ude00", rb"\ud83d\uda00"]
)
@pytest.mark.parametrize("end", [b"", rb'\ud83d"}}]}', b'"}}],"top_k":0}'])
def test_a_large_bad_body_is_refused_soon(text: bytes, end: bytes) -> None:
    body = b'{"context":{},"candidates":[{"id":1,"features":{"item":"' + text * (2**21 // len(text)) + end

    def refuse() -> None:
        assert refused(body)

    assert shortest_cpu_s(refuse) < 0.1  # An idle machine takes 0.005 to 0.045. Without limits, 0.35.


BAD_TEXT = [
    *(b'"\xff"', rb'"\ud83d"', rb'"Summer \ud83d sale"', b"1e999", b"9" * 5000),
    *(b"NaN", b"-Infinity", b"007", b"True", b'"a\tb"', rb'"\x"', rb'"\u12"'),
]


@pytest.mark.parametrize("value", BAD_TEXT)
def test_a_value_that_the_model_does_not_read_may_be_anything(value: bytes) -> None:
    body = b'{"context":{"user":"u1","page":%b},"candidates":[{"id":1,"features":{"item":1,"title":%b}}]}'
    request, errors = decode_score_request(body % (value, value), MAX_CANDIDATES, {"user", "item"})
    assert not errors
    assert request.context == {"user": "u1", "page": None}
    assert request.candidates[0].features == {"item": 1, "title": None}
    assert decode_explain_request(body % (value, value), MAX_CANDIDATES, {"user", "item"}).context["user"] == "u1"


@pytest.mark.parametrize("value", BAD_TEXT)
def test_a_value_that_the_model_reads_is_refused_with_its_path(value: bytes) -> None:
    problem = refused(b'{"context":{},"candidates":[{"id":1,"features":{"item":%b}}]}' % value)
    assert problem.path == "$.candidates[0].features.item"
    assert refused(b'{"context":{"user":%b},"candidates":[]}' % value).path == "$.context.user"


BAD_NAMES = [rb"\ud83d", b"\xff", b"a\tb", rb"C:\dir", rb"\u12", rb"\\\ude00"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("skip", [b"", b',"on_bad_candidate":"skip"'])
def test_a_broken_name_is_a_name_that_the_model_does_not_read(name: bytes, skip: bytes) -> None:
    body = b'{"context":{"user":"u1","%b":1},"candidates":[{"id":1,"%b":1,"features":{"item":1,"%b" : "x"}}]%b}'
    request, errors = decode_score_request(body % (name, name, name, skip), MAX_CANDIDATES, {"user", "item"})
    assert not errors
    for features, read in ((request.context, "user"), (request.candidates[0].features, "item")):
        assert len(features) == 2
        assert read in features
        assert features[read] is not None
    explained = decode_explain_request(body % (name, name, name, b""), MAX_CANDIDATES, {"user", "item"})
    assert explained.context == request.context


def test_broken_names_differ_as_the_names_in_the_body_do() -> None:
    context = rb'{"\ud83d":1,"\ud83e":2,"\ud83d\ude00":3,"\ud83d\ud83d":4}'
    request, _ = decode_score_request(b'{"context":%b,"candidates":[{"id":1,"features":{}}]}' % context, 1, {"user"})
    assert list(request.context) == [r"\ud83d", r"\ud83e", "\U0001f600", r"\ud83d\ud83d"]


def test_a_broken_name_of_an_option_is_an_unknown_field() -> None:
    problem = refused(rb'{"context":{},"candidates":[{"id":1,"features":{}}],"\ud83d":1}')
    assert isinstance(problem, BadRequest)
    assert problem.path == r"$.\ud83d"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"NaN", "Send null for a missing number"),
        (b"'red'", "double quotation marks"),
        (b'"a\nb"', "send a line break as \\n"),
        (rb'"C:\dir"', r"Send a backslash as \\"),
        (rb'"\ud83d"', "half of a surrogate pair"),
        (b'"\xfc\xff"', "bytes that are not UTF-8"),
    ],
)
def test_a_message_names_the_candidate_and_what_to_send(value: bytes, message: str) -> None:
    problem = refused(body_with(GOOD, "{}").replace(b"{}", b'{"id":2,"features":{"item":%b}}' % value))
    assert isinstance(problem, NotJson)
    assert problem.path == "$.candidates[1].features.item"
    assert message in problem.detail


FAULTS = [
    *(b"NaN", b"-Infinity", b"nope", b"+1", b"1e999", b"]"),
    *(b'"a\x00"', rb'"\x"', b'"\xff"', rb'"\ud83d"', b'"\xc3"'),
]
VALID_VALUES = [b"1", b'"\xc3\xa9"', rb'"\n"', b"null"]


@settings(deadline=None, max_examples=examples(500))
@given(st.lists(st.lists(st.sampled_from(FAULTS) | st.sampled_from(VALID_VALUES), max_size=4)))
def test_skip_keeps_every_good_candidate_wherever_the_faults_are(rows: list[list[bytes]]) -> None:
    features = [b",".join(b'"f%d": %b' % (place, value) for place, value in enumerate(row)) for row in rows]
    candidates = b",".join(b'{"id": %d, "features": {%b}}' % item for item in enumerate(features))
    body = b'{"context":{},"on_bad_candidate":"skip","candidates":[%b]}' % candidates
    if not rows or any(b"]" in row for row in rows):  # A wrong bracket may end any of the candidates.
        refused(body)
        return
    request, errors = decode_score_request(body, MAX_CANDIDATES)
    assert [candidate.id for candidate in request.candidates] == list(range(len(rows)))
    faults = [[place for place, value in enumerate(row) if value in FAULTS] for row in rows]
    first = {row: f"$.candidates[{row}].features.f{places[0]}" for row, places in enumerate(faults) if places}
    assert {row: error.path for row, error in errors.items()} == first
    if first:
        assert refused(body.replace(b"skip", b"refuse")).path == first[min(first)]


BAD_CANDIDATES = {
    "3": "$.candidates[1]",
    "[]": "$.candidates[1]",
    "null": "$.candidates[1]",
    "{}": "$.candidates[1].id",
    '{"id": 1.5, "features": {}}': "$.candidates[1].id",
    '{"id": true, "features": {}}': "$.candidates[1].id",
    '{"id": 1e999, "features": {}}': "$.candidates[1].id",
    '{"id": "\\ud83d", "features": {}}': "$.candidates[1].id",
    '{"id": 2}': "$.candidates[1].features",
    '{"id": 2, "features": 3}': "$.candidates[1].features",
    '{"id": 2, "features": {item: 1}}': "$.candidates[1].features",
    '{"id": 2, "features": {"item": 1e999}}': "$.candidates[1].features.item",
    '{"id": 2, "features": {"item": "\\ude00"}}': "$.candidates[1].features.item",
    '{"id": 2, "features": {"item": NaN}}': "$.candidates[1].features.item",
    '{"id": 2, "features": {"item": [-Infinity]}}': "$.candidates[1].features.item",
    '{"id": 2, "features": {"item": "a\tb"}}': "$.candidates[1].features.item",
    '{"id": 2, "features": {"item": "C:\\dir"}}': "$.candidates[1].features.item",
    '{"id": 2, "features": NaN}': "$.candidates[1].features",
    '{"id": NaN, "features": {}}': "$.candidates[1].id",
    '{"id": 2, "\\ud83d": 1}': "$.candidates[1].features",
    "undefined": "$.candidates[1]",
}


@pytest.mark.parametrize("bad", BAD_CANDIDATES)
def test_skip_protects_against_any_fault_inside_one_candidate(bad: str) -> None:
    body = body_with(GOOD, bad, GOOD, on_bad_candidate="skip", top_k=2)
    request, errors = decode_score_request(body, MAX_CANDIDATES)
    assert {row: error.path for row, error in errors.items()} == {1: BAD_CANDIDATES[bad]}
    assert [candidate.features for candidate in request.candidates] == [{"item": 4082}, {}, {"item": 4082}]
    assert (request.on_bad_candidate, request.top_k) == ("skip", 2)
    assert request.candidates[1].id == (2 if bad.startswith('{"id": 2') else None)


@pytest.mark.parametrize("bad", BAD_CANDIDATES)
def test_without_skip_the_message_has_the_path_of_the_fault(bad: str) -> None:
    assert refused(body_with(GOOD, bad, GOOD)).path == BAD_CANDIDATES[bad]


def test_an_integral_float_is_an_integer() -> None:
    body = body_with('{"id": 9.0, "features": {"item": 1.0}}', timeout_ms=1000.0, top_k=1.0, cascade=True)
    request, errors = decode_score_request(body, MAX_CANDIDATES)
    assert not errors
    assert msgspec.json.encode(request.candidates[0].id) == b"9"
    assert (request.timeout_ms, request.top_k, request.cascade) == (1000, 1, True)
    explained = decode_explain_request(body_with(GOOD, pairs=3.0, timeout_ms=2e3), MAX_CANDIDATES)
    assert (explained.pairs, explained.timeout_ms) == (3, 2000)


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        *(("17", "17"), (17, "17"), (17.0, "17"), (-1, "-1"), (2**70, str(2**70)), (" u 1\t", "u 1"), ("\0", "\0")),
        *((None, None), ("", None), ("  ", None), ("x" * 20, "x" * 20)),
    ],
)
@pytest.mark.parametrize("candidate", [GOOD, '{"id": 1.0, "features": {}}'])
def test_a_unit_is_read_like_a_categorical_value(unit: Any, text: str | None, candidate: str) -> None:
    request, _ = decode_score_request(body_with(candidate, unit=unit), MAX_CANDIDATES)
    assert unit_token(request.unit, 2**70) == text
    assert unit_token(decode_score_request(body_with(candidate), MAX_CANDIDATES)[0].unit, 20) is None


@pytest.mark.parametrize("unit", [True, 1.5, 1e300, 2.0**53, [], ["u"], {}, {"id": 1}])
def test_another_type_is_not_a_unit(unit: Any) -> None:
    for options in ({}, {"on_bad_candidate": "skip"}):
        problem = refused(body_with(GOOD, unit=unit, **options))
        assert isinstance(problem, BadRequest)
        assert problem.path == "$.unit"
    for raw in (b"NaN", b'"\xff"', rb'"\ud800"', b"1e999"):
        assert refused(body_with(GOOD, unit=0).replace(b'"unit": 0', b'"unit": ' + raw)).path == "$.unit"


@pytest.mark.parametrize("unit", ["x" * 21, 10**20, 10**5000], ids=["text", "integer", "long integer"])
def test_a_unit_that_is_too_long_is_refused(unit: str | int) -> None:
    with pytest.raises(BadRequest, match="send") as problem:
        unit_token(unit, 20)
    assert problem.value.path == "$.unit"


@pytest.mark.parametrize("largest", [2**53 - 1, 1 - 2**53])
def test_an_id_that_may_have_been_rounded_is_refused(largest: int) -> None:
    body = body_with(f'{{"id": {largest}.0, "features": {{}}}}')
    assert decode_score_request(body, MAX_CANDIDATES)[0].candidates[0].id == largest
    for rounded in (f"{largest + (1 if largest > 0 else -1)}.0", "1e17", "1e300"):
        problem = refused(body_with(f'{{"id": {rounded}, "features": {{}}}}'))
        assert problem.path == "$.candidates[0].id"
        assert "Send it as an integer or a string" in problem.detail
    exact = body_with(f'{{"id": {2**60 + 1}, "features": {{}}}}', top_k=1.0)
    assert decode_score_request(exact, MAX_CANDIDATES)[0].candidates[0].id == 2**60 + 1


@pytest.mark.parametrize(
    ("options", "path"),
    [({"timeout_ms": 1000.5}, "$.timeout_ms"), ({"top_k": 0.0}, "$.top_k"), ({"timeout_ms": 1e300}, "$.timeout_ms")],
)
def test_another_float_is_not_an_integer(options: dict[str, float], path: str) -> None:
    assert refused(body_with(GOOD, **options)).path == path


def test_a_byte_order_mark_is_ignored() -> None:
    mark = b"\xef\xbb\xbf"
    assert decode_score_request(mark + VALID, MAX_CANDIDATES) == decode_score_request(VALID, MAX_CANDIDATES)
    assert decode_score_request(mark + body_with(GOOD, top_k=1.0), MAX_CANDIDATES)[0].top_k == 1
    assert decode_explain_request(mark + body_with(GOOD), MAX_CANDIDATES).candidates[0].id == 1
    assert isinstance(refused(mark * 2 + VALID), NotJson)
    assert isinstance(refused(mark), NotJson)


@pytest.mark.timing
def test_too_many_candidates_are_refused_before_they_are_decoded() -> None:
    candidate = b'{"id":1,"features":[]},'
    body = b'{"context":{},"on_bad_candidate":"skip","candidates":[' + (candidate * 91_000)[:-1] + b"]}"
    start_s = time.thread_time()
    problem = refused(body)
    assert time.thread_time() - start_s < 0.2
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


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b'{"context":{},"candidates":NaN}', "$.candidates"),
        (b'{"context":nan,"candidates":[{"id":1,"features":{}}]}', "$.context"),
        (b'{"context":{},"candidates":[undefined]}', "$.candidates[0]"),
        (b'{"context":{},"candidates":[{"id":1,"features":NaN}]}', "$.candidates[0].features"),
    ],
)
def test_an_invalid_literal_in_place_of_an_object_is_named(body: bytes, path: str) -> None:
    with pytest.raises(Problem, match="This is not JSON, which has no NaN") as error:
        decode_score_request(body, 10)
    assert error.value.path == path
