"""Golden requests. Each field is sampled independently from the vocabulary, so that no row of the log is disclosed."""

from collections.abc import Iterator, Mapping

import numpy as np
from msgspec import UNSET

from contract.encode import Encoder, ModelInput
from contract.golden import GoldenCandidate, GoldenRequest, golden_input
from contract.schema import FeatureSchema, Field
from contract.tokens import number_in_bucket
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
    context = [f for f in schema.fields if f.side == "context"]
    candidate = [f for f in schema.fields if f.side == "candidate"]
    requests = []
    for _ in range(REQUESTS):
        count = int(np.exp(random.uniform(0, np.log(MAX_CANDIDATES + 1))))
        candidates = [GoldenCandidate(f"candidate-{i}", draw_features(candidate, tokens, random)) for i in range(count)]
        requests.append(GoldenRequest(draw_features(context, tokens, random), candidates, []))
    return requests


def golden_inputs(
    schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary], golden: list[GoldenRequest]
) -> Iterator[ModelInput]:
    """Yield each golden request as the service would encode it."""
    encoder = Encoder(schema)
    for request in golden:
        yield golden_input(encoder, request, vocabularies)


def draw_features(
    fields: list[Field], tokens: Mapping[str, list[str]], random: np.random.Generator
) -> dict[str, str | float | None]:
    """Sample a value for each field.

    Args:
        fields: The fields.
        tokens: The vocabulary's tokens for each categorical field.
        random: The random generator.
    """
    features: dict[str, str | float | None] = {}
    for field in fields:
        chance = random.random()
        if chance < MISSING_SHARE / 2:
            continue
        unknown = chance < MISSING_SHARE + UNKNOWN_SHARE
        if chance < MISSING_SHARE:
            features[field.name] = None
        elif field.kind == "numeric":
            # Use nine significant digits, regardless of the field's scale.
            features[field.name] = float(f"{random.normal(field.mean, field.std):.9g}")
        elif field.transform is not UNSET:
            features[field.name] = draw_number(tokens[field.name], unknown, random)
        elif unknown or not tokens[field.name]:
            features[field.name] = f"unseen-{random.integers(1000)}"
        else:
            features[field.name] = tokens[field.name][random.integers(len(tokens[field.name]))]
    return features


def draw_number(buckets: list[str], unknown: bool, random: np.random.Generator) -> float:
    """Sample a number from one of these buckets, or one that is in no bucket if `unknown`."""
    if unknown or not buckets:
        return -1e9 - float(random.integers(1000))
    return number_in_bucket(buckets[random.integers(len(buckets))])
