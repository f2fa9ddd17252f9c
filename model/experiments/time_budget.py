"""The time budget of ctr-train --auto: when to stop training, so that the run is measured and written in time."""

import math
import time
from collections.abc import Callable, Mapping

from torch import nn

from model.training.batches import Split
from model.training.fit import predict

WRITING_S = 6.0  # importing matplotlib, drawing the curve, and copying the vocabulary
SAFETY = 1.5  # other processes may slow down the last steps
MIN_SHARE = 0.1  # the share of the first epoch after which its duration is predicted
SAMPLE_ROWS = 8_192  # the rows whose evaluation is timed before the first epoch


class TimeUp(Exception):
    """There is no time for another epoch."""


class TimeBudget:
    """Watches the clock during the trials.

    The time for the last steps is reserved: evaluating valid and test, computing the batch norms, and writing the run.
    It is predicted from an evaluation at the start and the slowest epoch so far.
    """

    def __init__(
        self,
        deadline_s: float,
        rows: Mapping[str, int],
        clock: Callable[[], float] = time.monotonic,
        weights: int = 1,
        evaluations: int = 1,
    ) -> None:
        """Start the budget.

        Args:
            deadline_s: The time of the clock at which everything must be done.
            rows: The number of rows in each split.
            clock: Returns the time in seconds.
            weights: The number of weights that are evaluated: 2 with an average (Training.ema_half_life).
            evaluations: The number of evaluations per epoch.
        """
        self._deadline_s, self._clock, self._created_s = deadline_s, clock, clock()
        self._train_rows, self._valid_rows, self._test_rows = rows["train"], rows["valid"], rows["test"]
        self._weights, self._evaluations = weights, evaluations
        self._row_s = 0.0  # the predicted evaluation time of a row
        self._epoch_s = 0.0  # the duration of the slowest epoch, or a prediction during the first epoch
        self._last_epoch_s = 0.0
        self._is_measured = False
        self._start_s = self._first_step_s = clock()
        self._seen = 0

    def time_evaluation(self, model: nn.Module, valid: Split) -> None:
        """Time the evaluation of some rows, so that the last steps can be predicted before the first epoch."""
        sample = valid.sample(SAMPLE_ROWS)
        predict(model, sample)  # the first call also allocates memory
        start_s = self._clock()
        predict(model, sample)
        self._row_s = (self._clock() - start_s) / len(sample)

    def affordable_epochs(self) -> float:
        """Return the predicted number of epochs until training must stop. At least one epoch must be finished."""
        return max(0.0, self._stop_s - self._clock()) / self._last_epoch_s

    def start_epoch(self) -> None:
        """Record the start of an epoch.

        Raises:
            TimeUp: If the epoch would end too late.
        """
        self._start_s, self._seen = self._clock(), 0
        if self._start_s + self._epoch_s > self._stop_s:
            raise TimeUp

    def on_rows(self, rows: int) -> None:
        """Check the time after a training step with this number of rows.

        Raises:
            TimeUp: If the epoch would end too late.
        """
        now_s, before, self._seen = self._clock(), self._seen, self._seen + rows
        if not before:
            self._first_step_s = now_s  # the first step also allocates memory
        elif not self._is_measured and before >= MIN_SHARE * self._train_rows:
            left_s = (now_s - self._first_step_s) / before * (self._train_rows - self._seen)
            evaluation_s = self._row_s * self._valid_rows * self._weights * self._evaluations
            self._epoch_s = now_s + left_s + evaluation_s - self._start_s
            now_s = self._start_s + self._epoch_s
        if now_s > self._stop_s:
            raise TimeUp

    def on_epoch(self) -> None:
        """Record the duration of an epoch that has just ended.

        Raises:
            TimeUp: If another epoch would end too late.
        """
        epoch_s = self._clock() - self._start_s
        if self._is_measured and epoch_s > self._epoch_s:
            self._row_s *= epoch_s / self._epoch_s  # a larger model is also evaluated more slowly
        self._epoch_s = max(self._epoch_s, epoch_s) if self._is_measured else epoch_s
        self._last_epoch_s, self._is_measured = epoch_s, True
        self.start_epoch()

    def too_short(self) -> str:
        """Return the message for a budget in which no epoch can be finished."""
        given_s = max(0.0, self._deadline_s - self._created_s)
        left = f"measuring and writing the result takes about {self._reserved_s:.0f} s, but {given_s:.0f} s were left"
        if not self._epoch_s:
            return f"the time is too short: {left} before the first epoch. Increase --minutes, or train without --auto."
        minutes = math.ceil((self._reserved_s + 20 * self._epoch_s) / 60)
        return (
            f"the time is too short: an epoch takes about {self._epoch_s:.0f} s. In addition, {left}. Use --minutes "
            f"{minutes} to train about 20 epochs, or train without --auto."
        )

    @property
    def _stop_s(self) -> float:
        """The time of the clock at which training must stop."""
        return self._deadline_s - self._reserved_s

    @property
    def _reserved_s(self) -> float:
        """The predicted duration of the last steps. Computing the batch norms takes less time than an epoch."""
        measuring_s = self._row_s * (self._valid_rows + self._test_rows) + self._epoch_s
        return WRITING_S + SAFETY * self._weights * measuring_s
