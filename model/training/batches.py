"""Reading rows for training and evaluation, from memory or block by block from disk."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.vocabulary import MISSING, UNKNOWN
from model.experiment_config import Training

BLOCK_ROWS = 4_194_304  # the number of rows in memory at a time: 0.7 GB with 39 fields
RUN_ROWS = 8_192  # the number of contiguous rows on disk in a run; a block mixes 512 runs


@dataclass(frozen=True)
class Split:
    """A split as arrays: ids integer (rows, categorical), values float32 (rows, numeric), labels float32 (rows).

    ids and values may be memory-mapped. They are never read as a whole.

    Attributes:
        missing_vectors: Whether each numeric field has a vector for a missing number, bool (numeric). Only those fields
            can have NaN. By default, no field has one.
    """

    ids: NDArray[Any]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    missing_vectors: Sequence[bool] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> "Rows":
        """Return some rows as tensors. They are a copy, because torch needs writable memory."""
        return Rows(*(torch.from_numpy(np.array(a[start:stop])) for a in (self.ids, self.values, self.labels)))


@dataclass(frozen=True)
class Rows:
    """Rows of a split in memory, as tensors."""

    ids: Tensor
    values: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "Rows":
        return Rows(self.ids[rows], self.values[rows], self.labels[rows])


def join(parts: list[Rows]) -> Rows:
    """Concatenate rows. If there is only one part, it is not copied."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        torch.cat([p.ids for p in parts]), torch.cat([p.values for p in parts]), torch.cat([p.labels for p in parts])
    )


class Batches:
    """The training rows, reshuffled for each epoch, with a share of the tokens and numbers hidden.

    See hide_tokens() and hide_numbers().

    A split of at most block_rows rows is held in memory and shuffled as a whole. A larger split is read from disk in
    runs of run_rows contiguous rows, in random order. A block of these runs is held in memory at a time and shuffled.
    An epoch contains every row once, except that a last batch of one row is dropped, because batch normalization needs
    two rows.
    """

    def __init__(self, train: Split, recipe: Training, block_rows: int = BLOCK_ROWS, run_rows: int = RUN_ROWS) -> None:
        self._train, self._recipe = train, recipe
        self._block_rows, self._run_rows = block_rows, run_rows
        self._whole = train.part(0, len(train)) if len(train) <= block_rows else None
        self._never_missing = never_missing(train, block_rows)
        self._numbers_never_missing = numbers_never_missing(train, block_rows)
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield ids int64 (B, categorical), values (B, numeric) and labels (B) of each batch."""
        size = self._recipe.batch_size
        pending: list[Rows] = []
        for block in self._blocks():
            order = torch.randperm(len(block), generator=self.generator)
            missing = size - sum(map(len, pending))
            for rows in (order[:missing], *order[missing:].split(size)):
                pending.append(block[rows])
                if sum(map(len, pending)) == size:
                    yield self._batch(join(pending))
                    pending = []
        if sum(map(len, pending)) > 1:
            yield self._batch(join(pending))

    def _blocks(self) -> Iterator[Rows]:
        if self._whole is not None:
            yield self._whole
            return
        starts = torch.arange(0, len(self._train), self._run_rows)
        order = starts[torch.randperm(len(starts), generator=self.generator)]
        for runs in order.split(max(1, self._block_rows // self._run_rows)):
            yield join([self._train.part(start, start + self._run_rows) for start in runs.tolist()])

    def _batch(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        rate = self._recipe.unknown_rate
        ids = hide_tokens(rows.ids.long(), rate, self._never_missing, self.generator)
        values = hide_numbers(rows.values, rate, self._numbers_never_missing, self.generator)
        return ids, values, rows.labels


def never_missing(train: Split, block_rows: int) -> Tensor:
    """Return which fields are never missing in the training set, bool (categorical). Ids are read block by block."""
    blocks = (train.ids[start : start + block_rows] for start in range(0, len(train), block_rows))
    return torch.from_numpy(np.logical_and.reduce([(block != MISSING).all(0) for block in blocks]))


def numbers_never_missing(train: Split, block_rows: int) -> Tensor:
    """Return which fields have a missing vector but are never missing in the training set, bool (numeric).

    If no field has a missing vector, the values are not read.
    """
    found = torch.tensor([*train.missing_vectors] or [False] * train.values.shape[1], dtype=torch.bool)
    if found.any():
        for start in range(0, len(train), block_rows):
            found &= ~torch.from_numpy(np.isnan(train.values[start : start + block_rows]).any(0))
    return found


def hide_tokens(ids: Tensor, rate: float, never_missing: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a share of the ids with the unknown id, so that the model learns how to handle new tokens.

    If a field is never missing in the training set, the same share is replaced with the missing id. The field may be
    missing in a request, and the embedding of an id without training rows would be noise, which the batch norm of a
    nearly constant field would amplify.

    Args:
        ids: int64 (B, categorical).
        rate: The share of ids to replace.
        never_missing: bool (categorical).
        generator: The random generator that chooses the ids to replace.
    """
    if rate == 0:
        return ids
    chance = torch.rand(ids.shape, generator=generator)
    hidden = ids.masked_fill((chance < rate) & (ids != MISSING), UNKNOWN)
    return hidden.masked_fill((chance > 1 - rate) & never_missing, MISSING)


def hide_numbers(values: Tensor, rate: float, never_missing: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a share of the numbers with NaN in fields that are never missing in the training set.

    Such a field may be missing in a request, and its missing vector would not be trained otherwise. The vectors of all
    other fields learn from the rows that are missing, which may differ from a random choice.

    Args:
        values: float (B, numeric).
        rate: The share of numbers to replace.
        never_missing: See numbers_never_missing(). Without such a field, no random numbers are drawn.
        generator: The random generator that chooses the numbers to replace.
    """
    if rate == 0 or not never_missing.any():
        return values
    chance = torch.rand(values.shape, generator=generator)
    return values.masked_fill((chance < rate) & never_missing, math.nan)
