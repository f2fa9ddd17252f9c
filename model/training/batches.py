"""Reading rows for training and evaluation, from memory or block by block from disk."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
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
    """A split as arrays. ids and values may be memory-mapped. They are never read as a whole.

    Attributes:
        ids: Integer (rows, categorical fields).
        values: float32 (rows, numeric fields).
        labels: float32 (rows), 0 or 1.
        weights: float32 (rows), the weight of each row in the training loss and in the metrics, or None for 1.
        units: The unit of each row, such as the user, (rows), or None. Metrics by unit need it.
        names: The names of the categorical fields. Only Training.hide needs them.
        negative_rate: The fraction of negatives that were kept when the log was downsampled. Predictions and metrics
            correct for it.
        requests: The request in which each row was shown, (rows), or None. Metrics by request need it.
        positions: The position at which each row was shown, int32 (rows), -1 if missing, or None. Only training and the
            evaluation after each epoch use it.
        kept_negatives: The share of the negatives that ctr-prepare kept (Data.train_negative_rate). It is below 1 only
            for train. The training loss corrects for it.
        missing_vectors: Whether each numeric field has a vector for a missing number, bool (numeric). Only those fields
            can contain NaN. By default, no field has one.
    """

    ids: NDArray[Any]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None
    units: NDArray[Any] | None = None
    names: Sequence[str] = ()
    negative_rate: float = 1.0
    missing_vectors: Sequence[bool] = ()
    requests: NDArray[Any] | None = None
    positions: NDArray[np.int32] | None = None
    kept_negatives: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> "Rows":
        """Return some rows as tensors. They are a copy, because torch needs writable memory."""
        arrays = (self.ids, self.values, self.labels, self.weights, self.positions)
        return Rows(*(None if a is None else torch.from_numpy(np.array(a[start:stop])) for a in arrays))  # type: ignore[arg-type]

    def select(self, rows: NDArray[Any]) -> "Split":
        """Return the rows with these indices or with this mask."""
        optional = {name: getattr(self, name) for name in ("weights", "units", "requests", "positions")}
        selected: dict[str, Any] = {name: None if array is None else array[rows] for name, array in optional.items()}
        return replace(self, ids=self.ids[rows], values=self.values[rows], labels=self.labels[rows], **selected)

    def sample(self, rows: int) -> "Split":
        """Return at most this many rows, evenly spaced, because a log is often sorted by time."""
        return self.select(np.linspace(0, len(self) - 1, min(rows, len(self))).astype(np.int64))

    def metric_weights(self) -> NDArray[np.float64] | None:
        """Return how much each row counts in the metrics, (rows), or None if all rows count equally.

        A negative that was kept stands for 1 / negative_rate negatives of the true traffic.
        """
        return self._weigh_negatives(self.negative_rate)

    def log_weights(self) -> NDArray[np.float64] | None:
        """Return how much each row of train counts in statistics of the log, (rows), or None if all count equally.

        A negative that ctr-prepare kept stands for 1 / kept_negatives negatives of the log.
        """
        return self._weigh_negatives(self.kept_negatives)

    def _weigh_negatives(self, rate: float) -> NDArray[np.float64] | None:
        if self.weights is None and rate == 1:
            return None
        weights = np.ones(len(self)) if self.weights is None else self.weights.astype(np.float64)
        return np.where(self.labels > 0.5, weights, weights / rate)


@dataclass(frozen=True)
class Rows:
    """Rows of a split in memory, as tensors."""

    ids: Tensor
    values: Tensor
    labels: Tensor
    weights: Tensor | None = None
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "Rows":
        weights, positions = (None if tensor is None else tensor[rows] for tensor in (self.weights, self.positions))
        return Rows(self.ids[rows], self.values[rows], self.labels[rows], weights, positions)

    def to(self, device: torch.device) -> "Rows":
        """Return the rows on a device."""
        weights, positions = (None if t is None else t.to(device) for t in (self.weights, self.positions))
        return Rows(self.ids.to(device), self.values.to(device), self.labels.to(device), weights, positions)


def join(parts: list[Rows]) -> Rows:
    """Concatenate rows. If there is only one part, it is not copied."""
    if len(parts) == 1:
        return parts[0]
    weights = [p.weights for p in parts if p.weights is not None]
    positions = [p.positions for p in parts if p.positions is not None]
    return Rows(
        torch.cat([p.ids for p in parts]),
        torch.cat([p.values for p in parts]),
        torch.cat([p.labels for p in parts]),
        torch.cat(weights) if weights else None,
        torch.cat(positions) if positions else None,
    )


class Batches:
    """The training rows, reshuffled for each epoch, with a share of the tokens and numbers hidden.

    See hide_tokens() and hide_numbers().

    A split of at most block_rows rows is held in memory and shuffled as a whole. A larger split is read from disk in
    runs of run_rows contiguous rows, in random order. A block of these runs is held in memory at a time and shuffled.
    An epoch contains every row once, except that a last batch of one row is dropped, because batch normalization needs
    two rows.

    Attributes:
        generator: The random generator. While an epoch is read, it keeps the state at the start of the epoch, so that
            the epoch can be read again from any batch.
        steps_per_epoch: The number of batches in an epoch.
    """

    def __init__(self, train: Split, recipe: Training, block_rows: int = BLOCK_ROWS, run_rows: int = RUN_ROWS) -> None:
        self._train, self._recipe = train, recipe
        self._block_rows, self._run_rows = block_rows, run_rows
        self._whole = train.part(0, len(train)) if len(train) <= block_rows else None
        self._never_missing = never_missing(train, block_rows)
        self._numbers_never_missing = numbers_never_missing(train, block_rows)
        self._groups = [columns for columns in group_columns(recipe.hide, train.names) if len(columns) > 1]
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self._random = torch.Generator()  # draws the numbers of the current epoch
        full, rest = divmod(len(train), recipe.batch_size)
        self.steps_per_epoch = full + (rest > 1)
        self._rest: Iterator[Rows] = iter(())  # the batches of the current epoch from self._next on
        self._next = -1

    def part(self, start: int, stop: int) -> Iterator[Rows]:
        """Yield the batches `start` to `stop` (exclusive) of the current epoch. The last batch ends the epoch.

        If the batch before `start` was not the last one that was read, the epoch is read again up to there.
        """
        if start == 0 or start != self._next:
            self._rest = islice(self.epoch(), start, None)
        yield from islice(self._rest, stop - start)
        self._next = stop
        if stop == self.steps_per_epoch:
            next(self._rest, None)  # moves the generator to the next epoch

    def epoch(self) -> Iterator[Rows]:
        """Yield the batches: ids int64 (B, categorical), values (B, numeric), labels (B) and any weights (B)."""
        size = self._recipe.batch_size
        self._random.set_state(self.generator.get_state())
        pending: list[Rows] = []
        for block in self._blocks():
            order = torch.randperm(len(block), generator=self._random)
            missing = size - sum(map(len, pending))
            for rows in (order[:missing], *order[missing:].split(size)):
                pending.append(block[rows])
                if sum(map(len, pending)) == size:
                    yield self._batch(join(pending))
                    pending = []
        if sum(map(len, pending)) > 1:
            yield self._batch(join(pending))
        self.generator.set_state(self._random.get_state())

    def _blocks(self) -> Iterator[Rows]:
        if self._whole is not None:
            yield self._whole
            return
        starts = torch.arange(0, len(self._train), self._run_rows)
        order = starts[torch.randperm(len(starts), generator=self._random)]
        for runs in order.split(max(1, self._block_rows // self._run_rows)):
            yield join([self._train.part(start, start + self._run_rows) for start in runs.tolist()])

    def _batch(self, rows: Rows) -> Rows:
        rate, ids = self._recipe.unknown_rate, rows.ids.long()
        hidden = hide_tokens(ids, rate, self._never_missing, self._random)
        values = hide_numbers(rows.values, rate, self._numbers_never_missing, self._random)
        if self._groups:
            hidden = hide_groups(ids, hidden, rate, self._groups, self._random)
        return replace(rows, ids=hidden, values=values)


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
    other fields learn from the rows with missing numbers, which may differ from a random choice.

    Args:
        values: float (B, numeric).
        rate: The share of numbers to replace.
        never_missing: See numbers_never_missing(). If there is no such field, no random numbers are drawn.
        generator: The random generator that chooses the numbers to replace.
    """
    if rate == 0 or not never_missing.any():
        return values
    chance = torch.rand(values.shape, generator=generator)
    return values.masked_fill((chance < rate) & never_missing, math.nan)


def hide_groups(
    ids: Tensor, hidden: Tensor, rate: float, groups: Sequence[Sequence[int]], generator: torch.Generator
) -> Tensor:
    """Replace all fields of a group with the unknown id in a share of the rows, for each group independently.

    A value that is missing stays missing, as in hide_tokens().

    Args:
        ids: int64 (B, categorical), before any token was hidden.
        hidden: int64 (B, categorical), the result of hide_tokens().
        rate: The share of the rows for each group.
        groups: The columns of each group.
        generator: The random generator that chooses the rows.
    """
    chosen_BG = torch.rand((len(ids), len(groups)), generator=generator) < rate
    is_hidden = torch.zeros_like(ids, dtype=torch.bool)
    for chosen_B, columns in zip(chosen_BG.unbind(1), groups, strict=True):
        is_hidden[:, list(columns)] |= chosen_B[:, None]
    return hidden.where(~is_hidden, UNKNOWN).where(ids != MISSING, hidden)


def group_columns(groups: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[int]]:
    """Return the columns of each group of categorical fields.

    Raises:
        ValueError: If a group contains a name that is not a categorical field.
    """
    for name in (name for group in groups for name in group):
        if name not in names:
            raise ValueError(
                f'training.hide contains "{name}", which is not a categorical field of this log. Choose from '
                f"{', '.join(names)}."
            )
    return [[list(names).index(name) for name in group] for group in groups]
