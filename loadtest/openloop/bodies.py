"""Requests for a load test, sampled from a bundle, with the expected probabilities for each.

By default, half of the requests are built from the bundle's golden requests. For the others, each value is sampled from
the vocabulary with a probability proportional to 1 / id^1.1. Ids are ranked by frequency, so the values follow a power
law, as users and ads do in practice.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from contract.bundle import GOLDEN, Bundle
from contract.encode import Encoder
from contract.golden import read_golden
from loadtest.openloop.message import Prepared, message
from service.runtime.engine import Engine, open_engine

SKEW = 1.1
MAX_CANDIDATES = 200


class Requests:
    """Samples request bodies from a bundle.

    Args:
        candidates: Candidates per request. None: 1 to MAX_CANDIDATES, log-uniform.
        seed: The same seed gives the same requests.
        golden: Share of requests built from golden requests, which include missing and unknown values.
    """

    def __init__(self, bundle: Bundle, candidates: int | None, seed: int, golden: float = 0.5) -> None:
        self._random = random.Random(seed)  # noqa: S311  # load, not secrets
        self._candidates = candidates
        self._golden_share = golden
        self._golden = read_golden(bundle.folder / GOLDEN)
        self._fields = bundle.schema.fields
        self._tokens: dict[str, tuple[list[str], list[float]]] = {}
        for name, vocabulary in bundle.vocabularies.items():
            ranked = [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
            total, cumulative = 0.0, []
            for rank in range(len(ranked)):
                total += (rank + 1) ** -SKEW
                cumulative.append(total)
            self._tokens[name] = ranked, cumulative

    def draw(self) -> dict[str, Any]:
        """Return the body of a request, without a deadline."""
        count = self._candidates or int(math.exp(self._random.uniform(0, math.log(MAX_CANDIDATES + 1))))
        if self._random.random() < self._golden_share:
            request = self._random.choice(self._golden)
            chosen = self._random.choices(request.candidates, k=count)
            return {"context": request.context, "candidates": [{"id": c.id, "features": c.features} for c in chosen]}
        candidates = [{"id": index, "features": self._features("candidate")} for index in range(count)]
        return {"context": self._features("context"), "candidates": candidates}

    def _features(self, side: str) -> dict[str, Any]:
        """Sample a value for each field of a side, "context" or "candidate"."""
        features: dict[str, Any] = {}
        for field in self._fields:
            if field.side != side:
                continue
            if field.kind == "numeric":
                features[field.name] = round(self._random.gauss(field.mean, field.std), 3)
            elif self._tokens[field.name][0]:
                tokens, cumulative = self._tokens[field.name]
                features[field.name] = self._random.choices(tokens, cum_weights=cumulative)[0]
        return features


def prepare(
    bundles: Sequence[Bundle], mix: Mapping[int, int], timeout_ms: int | None, seed: int = 1, golden: float = 0.5
) -> list[Prepared]:
    """Sample requests from the first bundle and compute their probabilities with each bundle's model.

    Args:
        bundles: All versions that may answer.
        mix: Number of candidates -> number of requests.
        timeout_ms: Deadline in the requests. None: send no deadline, so that the server's default applies.
        seed: The same seed gives the same requests.
        golden: Share of requests built from golden requests.
    """
    deadline = {} if timeout_ms is None else {"timeout_ms": timeout_ms}
    bodies = [
        requests.draw() | deadline
        for count, number in mix.items()
        for requests in [Requests(bundles[0], count, seed + count, golden)]
        for _ in range(number)
    ]
    engines = [(bundle, open_engine(bundle, threads=1)) for bundle in bundles]
    prepared = []
    for body in bodies:
        ids = [candidate["id"] for candidate in body["candidates"]]
        expected = {bundle.manifest.version: expected_ctr(body, bundle, engine) for bundle, engine in engines}
        prepared.append(Prepared(message(msgspec.json.encode(body)), ids, expected))
    return prepared


def expected_ctr(body: dict[str, Any], bundle: Bundle, engine: Engine) -> list[float]:
    """Return the bundle's probability for each candidate of a request."""
    encoder = Encoder(bundle.schema)
    tokens = encoder.tokens(body["context"], [candidate["features"] for candidate in body["candidates"]])
    ctr: list[float] = engine.run([encoder.ids(tokens, bundle.vocabularies)[0]])[0].tolist()
    return ctr
