"""What a load test sends: requests drawn from a bundle, and the probabilities that are right for each.

Half of the requests are a bundle's golden ones; the others draw each value from the vocabulary with probability
~ 1 / id^1.1 (ids are ranks by frequency: a power law, as users and ads have).
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from contract.bundle import GOLDEN, Bundle
from contract.encode import Encoder
from contract.golden import GoldenCandidate, GoldenRequest, read_golden
from loadtest.openloop.message import Prepared, message
from service.runtime.engine import Engine, open_engine

SKEW = 1.1
MOST_CANDIDATES = 200


class Requests:
    """Draws request bodies from a bundle. candidates: in each; None: 1 to 200, log-uniform. golden: their share, with
    values that are missing or unknown."""

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
        count = self._candidates or int(math.exp(self._random.uniform(0, math.log(MOST_CANDIDATES + 1))))
        if self._random.random() < self._golden_share:
            return self._from_golden(self._random.choice(self._golden), count)
        candidates = [{"id": index, "features": self._features("candidate")} for index in range(count)]
        return {"context": self._features("context"), "candidates": candidates}

    def _from_golden(self, request: GoldenRequest, count: int) -> dict[str, Any]:
        chosen: list[GoldenCandidate] = self._random.choices(request.candidates, k=count)
        return {"context": request.context, "candidates": [{"id": c.id, "features": c.features} for c in chosen]}

    def _features(self, side: str) -> dict[str, Any]:
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
    """mix: number of candidates -> how many requests of that size. Drawn from the first bundle; expected: by each.
    timeout_ms: None leaves it to the server."""
    own = {} if timeout_ms is None else {"timeout_ms": timeout_ms}
    bodies = [
        requests.draw() | own
        for count, number in mix.items()
        for requests in [Requests(bundles[0], count, seed + count, golden)]
        for _ in range(number)
    ]
    engines = [(bundle, open_engine(bundle, threads=1)) for bundle in bundles]
    return [_prepared(body, engines) for body in bodies]


def _prepared(body: dict[str, Any], engines: Sequence[tuple[Bundle, Engine]]) -> Prepared:
    ids = [candidate["id"] for candidate in body["candidates"]]
    expected = {bundle.manifest.version: _ctr(body, bundle, engine) for bundle, engine in engines}
    return Prepared(message(msgspec.json.encode(body)), ids, expected)


def _ctr(body: dict[str, Any], bundle: Bundle, engine: Engine) -> list[float]:
    encoder = Encoder(bundle.schema)
    tokens = encoder.tokens(body["context"], [candidate["features"] for candidate in body["candidates"]])
    ctr: list[float] = engine.run([encoder.ids(tokens, bundle.vocabularies)[0]])[0].tolist()
    return ctr
