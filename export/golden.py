"""Golden requests: drawn field by field from the vocabulary, so that no row of the log leaves it."""

from collections.abc import Iterator, Mapping

import numpy as np
from msgspec import UNSET

from contract.encode import Encoder, ModelInput
from contract.golden import GoldenCandidate, GoldenRequest, golden_input
from contract.schema import FeatureSchema, Field
from contract.tokens import number_in_bucket
from contract.vocabulary import Vocabulary

REQUESTS = 300
MOST_CANDIDATES = 50
MISSING_SHARE = 0.1
UNKNOWN_SHARE = 0.1
SEED = 1


def draw_golden(schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary]) -> list[GoldenRequest]:
    """300 requests of 1 to 50 candidates (log-uniform), a tenth of the values missing and a tenth unknown.

    Their probabilities are still to be filled in. A missing value is null or absent, in turn.
    """
    random = np.random.default_rng(SEED)
    tokens = {name: sorted(t for t, _ in vocabulary.items()) for name, vocabulary in vocabularies.items()}
    return [_draw_request(schema, tokens, random) for _ in range(REQUESTS)]


def golden_inputs(
    schema: FeatureSchema, vocabularies: Mapping[str, Vocabulary], golden: list[GoldenRequest]
) -> Iterator[ModelInput]:
    """Each golden request as the service would encode it."""
    encoder = Encoder(schema)
    for one in golden:
        yield golden_input(encoder, one, vocabularies)


def _draw_request(schema: FeatureSchema, tokens: Mapping[str, list[str]], random: np.random.Generator) -> GoldenRequest:
    context = [f for f in schema.fields if f.side == "context"]
    candidate = [f for f in schema.fields if f.side == "candidate"]
    count = int(np.exp(random.uniform(0, np.log(MOST_CANDIDATES + 1))))
    candidates = [GoldenCandidate(f"candidate-{i}", _draw_features(candidate, tokens, random)) for i in range(count)]
    return GoldenRequest(_draw_features(context, tokens, random), candidates, [])


def _draw_features(
    fields: list[Field], tokens: Mapping[str, list[str]], random: np.random.Generator
) -> dict[str, str | float | None]:
    features: dict[str, str | float | None] = {}
    for field in fields:
        chance = random.random()
        if chance < MISSING_SHARE / 2:
            continue
        if chance < MISSING_SHARE:
            features[field.name] = None
        elif field.kind == "numeric":
            features[field.name] = _draw_value(field, random)
        elif field.transform is not UNSET:
            features[field.name] = _draw_number(tokens[field.name], chance < MISSING_SHARE + UNKNOWN_SHARE, random)
        elif chance < MISSING_SHARE + UNKNOWN_SHARE or not tokens[field.name]:
            features[field.name] = f"unseen-{random.integers(1000)}"
        else:
            features[field.name] = tokens[field.name][random.integers(len(tokens[field.name]))]
    return features


def _draw_value(field: Field, random: np.random.Generator) -> float:
    """Mostly among train's numbers, with as many digits whatever the field's scale."""
    return float(f"{random.normal(field.mean, field.std):.9g}")


def _draw_number(buckets: list[str], unseen: bool, random: np.random.Generator) -> float:
    """One that falls into one of these buckets, or into none."""
    if unseen or not buckets:
        return -1e9 - float(random.integers(1000))
    return number_in_bucket(buckets[random.integers(len(buckets))])
