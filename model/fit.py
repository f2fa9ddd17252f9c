"""The training loop (section 4.1.5): a model in, its best weights out."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from contract.vocabulary import MISSING, UNKNOWN
from model.experiment import Training
from model.metrics import Metrics, evaluate

LEARNING_RATE_FACTOR = 0.1
SMALLEST_LEARNING_RATE = 1e-6
SMALLEST_GAIN = 1e-6  # of the monitored metric, to count as an improvement
EVALUATION_ROWS = 16_384


@dataclass(frozen=True)
class Split:
    """ids int64 (rows, categorical), values float32 (rows, numeric), labels float32 (rows)."""

    ids: Tensor
    values: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Epoch:
    """loss: mean training BCE without the L2. rows_per_s: of training alone."""

    epoch: int
    loss: float
    valid: Metrics
    learning_rate: float
    rows_per_s: float
    improved: bool


def fit(
    model: nn.Module,
    tables: Sequence[nn.Parameter],
    train: Split,
    valid: Split,
    recipe: Training,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[Epoch]:
    """Trains in place and leaves the weights of the best epoch in the model, not the last.

    tables: the embeddings, on which embedding_l2 falls; net_l2 falls on the rest. on_epoch is
    called after each epoch, on_rows after each step with its number of rows.

    Raises:
        ValueError: for fewer than two training rows, and when the loss is no finite number.
    """
    if len(train) < 2:
        raise ValueError(f"{len(train)} training rows: batch normalisation needs two")
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    batches = Batches(train, recipe)
    plateau = Plateau(recipe)
    history: list[Epoch] = []
    for number in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        loss = _train_epoch(model, tables, batches, recipe, optimiser, on_rows)
        rows_per_s = len(train) / (time.perf_counter() - start)
        metrics = evaluate(valid.labels.numpy(), predict(model, valid))
        improved = plateau.judge(metrics, model)
        history.append(Epoch(number, loss, metrics, optimiser.param_groups[0]["lr"], rows_per_s, improved))
        on_epoch(history[-1])
        if plateau.over:
            break
        if not improved:
            lower = optimiser.param_groups[0]["lr"] * LEARNING_RATE_FACTOR
            optimiser.param_groups[0]["lr"] = max(lower, SMALLEST_LEARNING_RATE)
    model.load_state_dict(plateau.best)
    return history


class Plateau:
    """Keeps the best epoch's weights, and counts the epochs in a row that were no better.

    Training goes on from the current weights, not from the best ones: so did the paper's code base.
    """

    def __init__(self, recipe: Training) -> None:
        self._monitor, self._patience = recipe.monitor, recipe.patience
        self._score, self._failures = -np.inf, 0
        self.best: dict[str, Tensor] = {}

    @property
    def over(self) -> bool:
        return self._failures >= self._patience

    def judge(self, metrics: Metrics, model: nn.Module) -> bool:
        """Whether the epoch was better than the best before it."""
        score = metrics.auc if self._monitor == "auc" else -metrics.logloss
        if score <= self._score + SMALLEST_GAIN:
            self._failures += 1
            return False
        self._score, self._failures = score, 0
        self.best = copy.deepcopy(model.state_dict())
        return True


def predict(model: nn.Module, split: Split) -> NDArray[np.float64]:
    """Click probabilities (rows), in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        logits = [
            model(ids, values)
            for ids, values in zip(split.ids.split(EVALUATION_ROWS), split.values.split(EVALUATION_ROWS), strict=True)
        ]
    return torch.cat(logits).double().sigmoid().numpy()


def _train_epoch(
    model: nn.Module,
    tables: Sequence[nn.Parameter],
    batches: "Batches",
    recipe: Training,
    optimiser: torch.optim.Optimizer,
    on_rows: Callable[[int], None],
) -> float:
    model.train()
    in_tables = {id(p) for p in tables}
    rest = [p for p in model.parameters() if id(p) not in in_tables]
    total, seen = 0.0, 0
    for ids, values, labels in batches.epoch():
        optimiser.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(ids, values), labels)  # Eq. 12
        (loss + l2_penalty(tables, recipe.embedding_l2) + l2_penalty(rest, recipe.net_l2)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        total, seen = total + loss.item() * len(labels), seen + len(labels)
        on_rows(len(labels))
    if not np.isfinite(total):
        raise ValueError(f"the training loss is {total}: lower training.learning_rate or model.embedding_std")
    return total / seen


def l2_penalty(parameters: Sequence[nn.Parameter], l2: float) -> Tensor | float:
    """(l2 / 2) |P|^2 over whole tables in every step: lazy or decoupled decay trains another model."""
    if l2 == 0:
        return 0.0
    return 0.5 * l2 * torch.stack([p.square().sum() for p in parameters]).sum()


class Batches:
    """The training rows, shuffled anew for each epoch, with a share of the tokens hidden.

    A last batch of one row is left out, for batch normalisation needs two.
    """

    def __init__(self, train: Split, recipe: Training) -> None:
        self._train, self._recipe = train, recipe
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._never_missing = (train.ids != MISSING).all(0)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = torch.randperm(len(self._train), generator=self._generator)
        for rows in order.split(self._recipe.batch_size):
            if len(rows) > 1:
                ids = hide_tokens(
                    self._train.ids[rows], self._recipe.unknown_rate, self._never_missing, self._generator
                )
                yield ids, self._train.values[rows], self._train.labels[rows]


def hide_tokens(ids: Tensor, rate: float, never_missing: Tensor, generator: torch.Generator) -> Tensor:
    """Makes a share of the known tokens unknown, so that a new ad's id 0 means something in serving.

    In a field that the log never lacks, another such share becomes missing: a request may lack it, and an
    id that no training row had would be noise, which the batch norm of a nearly constant field multiplies.
    Shape: ids (B, categorical), never_missing bool (categorical).
    """
    if rate == 0:
        return ids
    chance = torch.rand(ids.shape, generator=generator)
    hidden = ids.masked_fill((chance < rate) & (ids != MISSING), UNKNOWN)
    return hidden.masked_fill((chance > 1 - rate) & never_missing, MISSING)
