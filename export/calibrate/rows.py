"""The rows that a calibration is fitted and measured on."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Scored impressions.

    Attributes:
        logit: The model's logits after the correction for a downsampled log, float64 (rows).
        label: 1 for a click and 0 otherwise, float64 (rows).
        importance: The weight that the log gives to each row, float64 (rows). 1 if the log has no weights.
        negative_rate: The share of the negatives that the log kept. Each one counts 1 / negative_rate times.
        cold: Whether a categorical field of the candidate is unknown to the model, bool (rows).
        segment: The id of the segment field's value, int64 (rows), or None without segments.
    """

    logit: Floats
    label: Floats
    importance: Floats
    negative_rate: float
    cold: NDArray[np.bool_]
    segment: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def weight(self) -> Floats:
        """How much each row counts in the whole traffic, (rows)."""
        return np.where(self.label > 0.5, self.importance, self.importance / self.negative_rate)

    @property
    def clicks(self) -> int:
        """The number of rows with a click."""
        return int(np.count_nonzero(self.label > 0.5))

    def select(self, rows: NDArray[Any]) -> "Rows":
        """Return the rows with these indices or with this mask."""
        return replace(
            self,
            logit=self.logit[rows],
            label=self.label[rows],
            importance=self.importance[rows],
            cold=self.cold[rows],
            segment=None if self.segment is None else self.segment[rows],
        )


def join_rows(parts: list[Rows]) -> Rows:
    """Concatenate rows of the same log."""
    segments = [part.segment for part in parts if part.segment is not None]
    return replace(
        parts[0],
        logit=np.concatenate([part.logit for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        importance=np.concatenate([part.importance for part in parts]),
        cold=np.concatenate([part.cold for part in parts]),
        segment=np.concatenate(segments) if segments else None,
    )
