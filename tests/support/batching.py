"""Inputs for batching, and a model that waits until the test releases it."""

import time
from collections.abc import Sequence
from threading import Event

import numpy as np

from contract.encode import ModelInput
from service.runtime.engine import Scored
from service.scoring.batching import Answer

BROKEN = 666


class WaitingModel:
    """Returns id / 1000 for each candidate once `go` is set. Fails if the batch contains BROKEN."""

    def __init__(self) -> None:
        self.go = Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: Sequence[ModelInput]) -> list[Scored]:
        self.batches.append([len(one.candidate_ids) for one in batch])
        assert self.go.wait(30)
        if any(BROKEN in one.candidate_ids for one in batch):
            raise ArithmeticError("the model failed")
        return per_mille(batch)


def per_mille(batch: Sequence[ModelInput]) -> list[Scored]:
    """Return a ctr of id / 1000 and a logit of -id for each candidate."""
    return [Scored(request.candidate_ids[:, 0] / 1000, -request.candidate_ids[:, 0].astype(float)) for request in batch]


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
    """Return the ids that an answer is for."""
    ids = [round(1000 * x) for x in answer.scored.ctr]
    assert answer.scored.logit.tolist() == [-number for number in ids]
    return ids
