"""The example request: whole and known, whatever the golden requests miss."""

from pathlib import Path

import pytest

from contract.bundle import open_bundle
from contract.encode import Encoder
from contract.golden import GoldenCandidate, GoldenRequest, read_golden
from service.api.example import example_request


def unknown_and_missing(bundle: Path, golden: list[GoldenRequest], most: int) -> int:
    opened = open_bundle(bundle)
    request = example_request(opened, golden, most)
    encoder = Encoder(opened.schema, strict=True)
    tokens = encoder.tokens(request["context"], [one["features"] for one in request["candidates"]])
    return encoder.ids(tokens, opened.vocabularies)[1].total() + tokens.missing.total() + tokens.ignored.total()


@pytest.mark.parametrize("most", [1, 2, 1000])
def test_an_example_has_as_many_candidates_as_are_taken_but_at_most_three(bundle: Path, most: int) -> None:
    golden = read_golden(bundle / "golden.jsonl")
    assert len(example_request(open_bundle(bundle), golden, most)["candidates"]) == min(3, most)
    assert unknown_and_missing(bundle, golden, most) == 0


def test_what_one_golden_request_misses_is_taken_from_others(bundle: Path) -> None:
    for one in read_golden(bundle / "golden.jsonl"):
        assert unknown_and_missing(bundle, [one], 3) == 0


def test_what_all_golden_requests_miss_is_made_up(bundle: Path) -> None:
    golden = [GoldenRequest({"user": "nobody", "planet": "mars"}, [GoldenCandidate("a", {"item": None})], [0.5])]
    assert unknown_and_missing(bundle, golden, 3) == 0
