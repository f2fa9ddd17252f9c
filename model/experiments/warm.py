"""Warm starts: training from the weights of an earlier run, whose log had different tokens.

The ids of a token differ between two logs, so the rows of the embedding tables are copied by token. A new token starts
from the row of the unknown id, which the earlier run trained for tokens that it had not seen. All other weights, and
the statistics of the batch norms, are copied as they are, because they belong to fields and not to tokens.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.bundle import VOCABULARY
from contract.schema import TIME_TRANSFORMS, FeatureSchema, Field
from contract.vocabulary import MISSING, UNKNOWN, Vocabulary, open_vocabulary
from model.data.prepare.prepared import Prepared
from model.experiment_config import Experiment
from model.experiments.run_folder import WarmFacts, file_digests, open_run
from model.layers import FeatureEmbedding
from model.training.initial_bias import output_bias
from model.training.position import PositionEffect, position_effects
from model.zoo import Config, name_of

MAX_MOVE = 0.1  # standard deviations that a mean may move without a warning
# The keys of [model] that may differ, because they do not change what the weights mean.
FREE_KEYS = ("dropout", "mlp_dropout", "mlp2_dropout", "embedding_std")


@dataclass(frozen=True)
class WarmStart:
    """An earlier run's model, with the rows of its embedding tables that the tokens of a new log start from.

    Attributes:
        facts: What the new run records about the earlier one.
        model: The earlier run's model.
        rows: The row of the earlier tables for each row of the new ones, int64 (rows of all categorical fields).
        scale: The factor of each numeric field's vector, float32 (numeric). It compensates for a different standard
            deviation in the new log, because the vector is multiplied by the normalized value.
        bias: The number added to the logit, because the two logs may have kept different shares of the negatives.
        warnings: Warnings about numeric fields whose mean has changed, which `scale` does not compensate for.
        positions: The position effects that were trained with the earlier run's model.
    """

    facts: WarmFacts
    model: nn.Module
    rows: Tensor
    scale: Tensor
    bias: float
    warnings: tuple[str, ...] = ()
    positions: Sequence[PositionEffect] = ()

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Copy the earlier run's weights to a new model of the same size."""
        weights, earlier = dict(self.model.state_dict()), dict(self.model.named_modules())
        for name, module in model.named_modules():
            if isinstance(module, FeatureEmbedding):
                source = earlier[name]
                assert isinstance(source, FeatureEmbedding)
                weights[f"{name}.table.weight"] = source.table.weight[self.rows]
                weights[f"{name}.alpha"] = source.alpha * self.scale[:, None]
        # Only the vectors of missing numbers and the position effects can be in just one of the two models. Zero is the
        # vector of the mean, and the effect of the average position.
        new = model.state_dict()
        for name in model.load_state_dict(weights, strict=False).missing_keys:
            new[name].zero_()
        effects = position_effects(model)
        mean = effects.copy(self.positions) if effects and self.positions else 0.0
        output_bias(model).add_(self.bias + mean)


def open_warm_start(run: Path, experiment: Experiment, prepared: Prepared) -> WarmStart:
    """Open the run that an experiment starts from.

    Args:
        run: The run folder.
        experiment: The experiment to train.
        prepared: The log to train on.

    Raises:
        ValueError: If the folder is not a run, or if its model has a different type, size or fields.
    """
    model, earlier, schema, metrics = open_run(run)
    check_same_model(run, earlier.model, experiment.model)
    check_same_fields(run, schema, prepared.schema)
    rows, tokens, known, offset, earlier_tokens = list[NDArray[np.int64]](), 0, 0, 0, 0
    for field in schema.select("categorical"):
        old, new = (open_vocabulary(folder, field.name) for folder in (run / VOCABULARY, prepared.vocabulary))
        source = source_rows(old, new)
        tokens, known = tokens + len(new) - 2, known + int((source[2:] != UNKNOWN).sum())
        rows.append(source + offset)
        offset += len(old)
        earlier_tokens += len(old) - 2
    numbers = list(zip(schema.select("numeric"), prepared.schema.select("numeric"), strict=True))
    scale = torch.tensor([new.std / old.std for old, new in numbers])
    facts = WarmFacts(run_digest(run), tokens, tokens - known, earlier_tokens - known)
    bias = math.log(earlier.data.negative_rate / experiment.data.negative_rate)
    warnings = tuple(filter(None, (moved_mean(old, new) for old, new in numbers)))
    return WarmStart(facts, model, torch.from_numpy(np.concatenate(rows)), scale, bias, warnings, metrics.positions)


def moved_mean(old: Field, new: Field) -> str | None:
    """Return a warning if the mean of a numeric field has changed between two logs, or None.

    The normalized value is 0 at the mean. If the mean changes, all normalized values change, but the weights do not.
    """
    if abs(moved := (new.mean - old.mean) / old.std) <= MAX_MOVE:
        return None
    scale = " of its logarithm" if new.transform == "log1p" else ""
    return (
        f'the mean{scale} of field "{new.name}" has moved by {moved:+.2f} standard deviations, from {old.mean:g} to '
        f"{new.mean:g}. The first predictions are off until training has adapted; use more epochs, or train without "
        "--warm."
    )


def source_rows(old: Vocabulary, new: Vocabulary) -> NDArray[np.int64]:
    """Return the id in the old vocabulary of each id in the new one, int64 (ids). New tokens have 0."""
    rows = np.full(len(new), UNKNOWN, np.int64)
    rows[MISSING] = MISSING
    for token, index in new.items():
        rows[index] = old(token)
    return rows


def run_digest(run: Path) -> str:
    """Return a sha256 of the files that define a run."""
    return hashlib.sha256(msgspec.json.encode(file_digests(run), order="sorted")).hexdigest()


def check_same_model(run: Path, old: Config, new: Config) -> None:
    """Check that two [model] sections describe the same weights.

    Raises:
        ValueError: If the weights differ. The message names the key.
    """
    if name_of(old) != name_of(new):
        raise different(run, f'model.type is "{name_of(old)}" in the run and "{name_of(new)}" in the experiment')
    for key in old.__struct_fields__:
        values: list[Any] = [msgspec.to_builtins(getattr(config, key)) for config in (old, new)]
        if values[0] != values[1] and key not in FREE_KEYS:
            raise different(run, f"model.{key} is {values[0]} in the run and {values[1]} in the experiment")


def check_same_fields(run: Path, old: FeatureSchema, new: FeatureSchema) -> None:
    """Check that two logs have the same fields in the same order. Only their tokens, means and ranges may differ.

    Raises:
        ValueError: If the fields differ. The message names the field.
    """
    before, after = ({field.name: meaning(field) for field in schema.fields} for schema in (old, new))
    if added := after.keys() - before.keys():
        raise different(run, f'field "{min(added)}" is in the log but not in the run')
    if removed := before.keys() - after.keys():
        raise different(run, f'field "{min(removed)}" is in the run but not in the log')
    if old.pseudonym_key != new.pseudonym_key:
        raise different(run, "the pseudonyms in the run were made with another key than those in the log")
    for name, properties in before.items():
        if properties != after[name]:
            raise different(run, f'field "{name}" is {properties} in the run and {after[name]} in the log')
    if list(before) != list(after):
        raise different(run, f"the fields are in the order {', '.join(before)} in the run")


def meaning(field: Field) -> str:
    """Return the properties of a field that its weights depend on."""
    transform = f" with {field.transform}" if field.transform else ""
    zone = f" in {field.timezone or 'UTC'}" if field.transform in TIME_TRANSFORMS else ""
    source = f" from {field.reads}" if field.reads != field.name else ""
    pseudonyms = " with pseudonyms" if field.pseudonym else ""
    return f"{field.side} {field.kind}{transform}{zone}{source}{pseudonyms}"


def different(run: Path, reason: str) -> ValueError:
    """Return the error about a run whose weights cannot be copied."""
    return ValueError(
        f"--warm {run}: {reason}. A warm start copies the weights of the same model with the same fields. Change the "
        "experiment, or train without --warm."
    )
