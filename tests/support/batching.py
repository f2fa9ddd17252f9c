"""Inputs for batching, and a model that waits until the test releases it."""

import time
from collections.abc import Sequence
from threading import Event

import numpy as np
from numpy.typing import NDArray

from contract.encode import ModelInput
from service.scoring.batching import Answer

Ctr = NDArray[np.float64]
BROKEN = 666


class WaitingModel:
    """Returns id / 1000 for each candidate once `go` is set. Fails if the batch contains BROKEN."""

    def __init__(self) -> None:
        self.go = Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: Sequence[ModelInput]) -> list[Ctr]:
        self.batches.append([len(one.candidate_ids) for one in batch])
        assert self.go.wait(30)
        if any(BROKEN in one.candidate_ids for one in batch):
            raise ArithmeticError("the model failed")
        return [one.candidate_ids[:, 0] / 1000 for one in batch]


def rows(*ids: int) -> ModelInput:
    numbers = len(ids)
    return ModelInput(
        np.zeros((1, 1), np.int64),
        np.array(ids, np.int64).reshape(numbers, 1),
        np.zeros((1, 0), np.float32),
        np.zeros((numbers, 0), np.float32),
    )


def soon(seconds: float = 30) -> float:
    return time.perf_counter() + seconds


def ctr(answer: Answer) -> list[int]:
    return [round(1000 * x) for x in answer.ctr]
