"""Golden requests. Each field is sampled independently from the vocabulary, so that no row of the log is disclosed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from contract.encode import Encoder, ModelInput
from contract.golden import GoldenCandidate, GoldenRequest, golden_input
from contract.raw_values import Source, sources
from contract.schema import FeatureSchema
from contract.vocabulary import Vocabulary

REQUESTS = 300
MAX_CANDIDATES = 50
MISSING_SHARE = 0.1
UNKNOWN_SHARE = 0.1
SEED = 1


def draw_golden(schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary]) -> list[GoldenRequest]:
    """Return REQUESTS requests with 1 to MAX_CANDIDATES candidates (log-uniform), without probabilities.

    10% of the values are missing (null or absent), and 10% are unknown.
    """
    random = np.random.default_rng(SEED)
    tokens = {name: sorted(t for t, _ in vocabulary.items()) for name, vocabulary in vocabularies.items()}
    context, candidate = (
        sources([field for field in schema.fields if field.side == side], tokens) for side in ("context", "candidate")
    )
    requests = []
    for _ in range(REQUESTS):
        count = int(np.exp(random.uniform(0, np.log(MAX_CANDIDATES + 1))))
        candidates = [GoldenCandidate(f"candidate-{i}", draw_features(candidate, random)) for i in range(count)]
        requests.append(GoldenRequest(draw_features(context, random), candidates, []))
    return requests


def golden_inputs(
    schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary], golden: list[GoldenRequest]
) -> Iterator[ModelInput]:
    """Yield each golden request as the service would encode it."""
    encoder = Encoder(schema)
    for request in golden:
        yield golden_input(encoder, request, vocabularies)


def draw_features(fields: Sequence[Source], random: np.random.Generator) -> dict[str, str | float | None]:
    """Sample a value for each name that fields of one side read.

    Args:
        fields: The fields, grouped by the name that they read.
        random: The random generator.
    """
    features: dict[str, str | float | None] = {}
    for source in fields:
        chance = random.random()
        if chance < MISSING_SHARE / 2:
            continue
        unknown = chance < MISSING_SHARE + UNKNOWN_SHARE
        if chance < MISSING_SHARE:
            features[source.name] = None
        elif source.is_numeric:
            # Use nine significant digits, regardless of the field's scale.
            features[source.name] = float(f"{source.number(random.normal()):.9g}")
        elif unknown or not source.known:
            features[source.name] = source.unknown(int(random.integers(1000)))
        else:
            features[source.name] = source.known[int(random.integers(len(source.known)))]
    return features
