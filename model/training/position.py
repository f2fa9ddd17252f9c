"""A trained effect of the position at which a candidate was shown, which only training uses (Data.position).

Users click more often on the first candidate, whatever it is. And the candidates with the highest predictions are shown
first, so a model without this effect partly learns the order that the earlier model chose. Training adds the effect of
a row's position to its logit, so the model itself does not have to explain it. The server does not know the positions
when it scores: the effects are centered such that the model's own logit is that of the average position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.training.batches import Split

NAME = "position_effects"  # the attribute of a model during training
MIN_CLICKS = 25  # with fewer, the standard error of an effect is above 0.2
MAX_POSITIONS = 1000
# Adam moves each number by about the learning rate in a step. The few effects that all rows share can move faster than
# the thousands of others, so that the others do not have to learn the positions first.
SPEED = 10.0


@dataclass(frozen=True)
class PositionEffect:
    """What was learned about a position.

    Attributes:
        position: The position. The last one includes all later positions.
        rows: The number of training rows.
        clicks: The number of clicks in them.
        effect: The effect on the logit. The mean over the training rows is 0.
    """

    position: int
    rows: int
    clicks: int
    effect: float

    def __str__(self) -> str:
        return f"{self.position}: {self.effect:+.3f} ({self.rows:,} rows, {self.clicks:,} clicks)"


class PositionEffects(nn.Module):
    """The effect of each position on the logit. Shape: positions int64 (B), -1 if missing -> effects (B).

    The effect of a missing position is 0, that of the average position. Positions after the last common one share its
    effect. There is no penalty on the effects.
    """

    rows_P: Tensor
    clicks_P: Tensor
    shares_P: Tensor

    def __init__(self, train: Split) -> None:
        """Start all effects at 0.

        Args:
            train: The training rows, with positions.

        Raises:
            ValueError: If there are not two positions with enough clicks, whose effects can be told apart.
        """
        super().__init__()
        assert train.positions is not None
        known = np.flatnonzero(train.positions >= 0)
        positions, labels = train.positions[known], train.labels[known]
        last = last_common(positions, labels)
        positions = np.minimum(positions, last)
        if last == 0 or len(np.unique(positions)) < 2:
            raise ValueError(
                f"position: fewer than two positions of train have {MIN_CLICKS} clicks, so no effect can be learned. "
                "Remove position from [data], or use more rows."
            )
        weights = train.log_weights()
        shares = np.bincount(positions, None if weights is None else weights[known], minlength=last + 1)
        self.steps_P = nn.Parameter(torch.zeros(last + 1))
        # These are constants of the log, so they are not in the state_dict.
        self.register_buffer("rows_P", torch.from_numpy(np.bincount(positions)), persistent=False)
        self.register_buffer("clicks_P", torch.from_numpy(np.bincount(positions, labels)), persistent=False)
        self.register_buffer("shares_P", torch.from_numpy(shares / shares.sum()).float(), persistent=False)

    def effects(self) -> Tensor:
        """Return the effect of each position, (P). Their mean over the rows of the log is 0."""
        effects_P = SPEED * self.steps_P
        return effects_P - self.shares_P @ effects_P

    def forward(self, positions_B: Tensor) -> Tensor:
        index_B = positions_B.long().clamp(0, len(self.steps_P) - 1)
        return self.effects()[index_B].masked_fill(positions_B < 0, 0.0)

    @torch.no_grad()
    def copy(self, effects: Sequence[PositionEffect]) -> float:
        """Start at the effects that an earlier run has learned.

        A position that the run did not have starts at the effect of the position before it, or else after it.

        Returns:
            The mean of these effects over the rows of this log. The earlier model needs it as an additional bias,
            because its logit is that of the average position in its own log.
        """
        known = {effect.position: effect.effect for effect in effects}
        positions = np.arange(len(self.steps_P))
        start_P = torch.from_numpy(nearest(positions, known)).to(self.steps_P)
        self.steps_P.copy_(start_P / SPEED)
        return float(self.shares_P @ start_P)

    def learned(self) -> list[PositionEffect]:
        """Return the effects of all positions that occur in train."""
        columns = (self.rows_P.tolist(), self.clicks_P.tolist(), self.effects().tolist())
        found = enumerate(zip(*columns, strict=True))
        return [
            PositionEffect(position, rows, round(clicks), effect) for position, (rows, clicks, effect) in found if rows
        ]


def nearest(positions: NDArray[np.int64], known: dict[int, float]) -> NDArray[np.float64]:
    """Return the value of each position, or else of the last known one before it, or else of the first one."""
    keys = sorted(known)
    index = np.searchsorted(keys, positions, side="right") - 1
    values: NDArray[np.float64] = np.array([known[key] for key in keys])[index.clip(0)]
    return values


def last_common(positions: NDArray[np.int32], labels: NDArray[np.float32]) -> int:
    """Return the largest position such that it and all later ones together have MIN_CLICKS clicks, or 0."""
    clicked = np.sort(positions[labels > 0])
    return min(int(clicked[-MIN_CLICKS]), MAX_POSITIONS - 1) if len(clicked) >= MIN_CLICKS else 0


def position_effects(model: nn.Module) -> PositionEffects | None:
    """Return the effects that are trained with a model, or None."""
    effects = getattr(model, NAME, None)
    assert effects is None or isinstance(effects, PositionEffects)
    return effects


def add_position_effects(model: nn.Module, train: Split) -> None:
    """Train position effects with a model. They become part of its parameters and its state_dict, not of its output."""
    model.add_module(NAME, PositionEffects(train))


def remove_position_effects(model: nn.Module) -> list[PositionEffect]:
    """Remove the effects from a trained model, and return them. They are not part of the run's weights."""
    effects = position_effects(model)
    if effects is None:
        return []
    delattr(model, NAME)
    return effects.learned()


def without_position_effects(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state_dict of a model without its position effects."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{NAME}.")}
