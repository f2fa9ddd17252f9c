"""Requests for a load test, sampled from a bundle, with the expected probabilities for each.

By default, half of the requests are built from the bundle's golden requests. For the others, each value is sampled from
the vocabulary with a probability proportional to 1 / id^1.1. Ids are ranked by frequency, so the values follow a power
law, as users and ads do in practice. A field with a transform gets a raw value, such as a number or a timestamp, whose
token is in the vocabulary.
"""

import math
import random
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from contract.bundle import GOLDEN, Bundle
from contract.encode import Encoder
from contract.golden import read_golden
from contract.raw_values import sources
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
        ranked = {
            name: [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
            for name, vocabulary in bundle.vocabularies.items()
        }
        self._sources = {
            side: [
                (source, list(accumulate((rank + 1) ** -SKEW for rank in range(len(source.known)))))
                for source in sources([field for field in bundle.schema.fields if field.side == side], ranked)
            ]
            for side in ("context", "candidate")
        }

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
        """Sample a value for each name that the fields of a side read, "context" or "candidate"."""
        features: dict[str, Any] = {}
        for source, cumulative in self._sources[side]:
            if source.is_numeric:
                features[source.name] = round(source.number(self._random.gauss(0, 1)), 3)
            elif cumulative:
                features[source.name] = self._random.choices(source.known, cum_weights=cumulative)[0]
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
