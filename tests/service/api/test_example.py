"""The example request has only known values, even if values are missing in the golden requests."""

from pathlib import Path

import pytest

from contract.bundle import open_bundle
from contract.encode import Encoder
from contract.golden import GoldenCandidate, GoldenRequest, read_golden
from service.api.example import example_request


def bad_values(bundle: Path, golden: list[GoldenRequest], max_candidates: int) -> int:
    """Return how many values of the example are unknown, missing or not in a field of the model."""
    opened = open_bundle(bundle)
    request = example_request(opened, golden, max_candidates)
    encoder = Encoder(opened.schema, strict=True)
    tokens = encoder.tokens(request["context"], [candidate["features"] for candidate in request["candidates"]])
    return encoder.ids(tokens, opened.vocabularies)[1].total() + tokens.missing.total() + tokens.ignored.total()


@pytest.mark.parametrize("max_candidates", [1, 2, 1000])
def test_an_example_has_as_many_candidates_as_the_server_accepts_but_at_most_three(
    bundle: Path, max_candidates: int
) -> None:
    golden = read_golden(bundle / "golden.jsonl")
    assert len(example_request(open_bundle(bundle), golden, max_candidates)["candidates"]) == min(3, max_candidates)
    assert bad_values(bundle, golden, max_candidates) == 0


def test_an_example_of_one_golden_request_has_no_bad_values(bundle: Path) -> None:
    for request in read_golden(bundle / "golden.jsonl"):
        assert bad_values(bundle, [request], 3) == 0


def test_values_that_are_in_no_golden_request_are_made_up(bundle: Path) -> None:
    golden = [GoldenRequest({"user": "nobody", "planet": "mars"}, [GoldenCandidate("a", {"item": None})], [0.5])]
    assert bad_values(bundle, golden, 3) == 0
