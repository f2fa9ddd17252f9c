"""Calibrating the margins of the cascade (contract/cascade.py) on requests sampled from valid and test.

A sampled request consists of the context of one row and the candidate fields of other rows, because a log does not
contain the candidates that lost an auction. Margins are calibrated on valid. Recall and savings are measured on test.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from contract.bundle import MODEL, OUTPUT, SCREEN, CascadeRule
from contract.cascade import survivors
from contract.encode import ModelInput, join
from contract.schema import Kind, Side
from model.data.prepare.prepared import Prepared

KS = (1, 3, 10, 30)
REQUESTS = 300
CANDIDATES = 100
RECALL = 0.999  # the target when calibrating margins
MAX_SCORED = 0.5  # a share of the candidates; scoring more of them twice would take more time than the cascade saves
SEED = 1

Logits = NDArray[np.float32]


def is_large_enough(prepared: Prepared) -> bool:
    """Return whether a log has enough rows to sample requests."""
    return all(prepared.facts.splits[split].rows > CANDIDATES for split in ("valid", "test"))


def calibrate(folder: Path, prepared: Prepared) -> list[CascadeRule]:
    """Return a rule for each k in KS for which a cascade saves time. The list may be empty.

    Args:
        folder: The folder with the graphs.
        prepared: A log that is_large_enough().
    """
    valid, test = (run_graphs(folder, draw_requests(prepared, split)) for split in ("valid", "test"))
    rules = [measure(*test, k, calibrated_margin(*valid, k)) for k in KS]
    return [rule for rule in rules if rule.scored <= MAX_SCORED]


def calibrated_margin(screen: Logits, full: Logits, k: int) -> float:
    """Return the margin that keeps a share RECALL of the best k candidates.

    Args:
        screen: The first level's logits, (requests, candidates).
        full: The model's logits, (requests, candidates).
        k: The number of best candidates.
    """
    best = np.argpartition(-full, k - 1, axis=1)[:, :k]
    kth_best = -np.partition(-screen, k - 1, axis=1)[:, k - 1 : k]
    shortfall = np.maximum(kth_best - np.take_along_axis(screen, best, axis=1), 0)
    needed = float(np.quantile(shortfall, RECALL, method="higher"))
    return math.ceil(needed * 1e4) / 1e4  # round up, so that rounding does not lose candidates


def measure(screen: Logits, full: Logits, k: int, margin: float) -> CascadeRule:
    """Return the rule for a margin, with its recall and savings. See calibrated_margin() for the other arguments."""
    kept = np.array([survivors(row, k, margin, screen.shape[1]) for row in screen])
    best = np.argpartition(-full, k - 1, axis=1)[:, :k]
    recall = np.take_along_axis(kept, best, axis=1).mean()
    requests, candidates = full.shape
    return CascadeRule(k, margin, round(float(recall), 4), round(float(kept.mean()), 4), candidates, requests)


def draw_requests(prepared: Prepared, split: str) -> list[ModelInput]:
    """Sample REQUESTS contexts, each with the candidate fields of CANDIDATES other rows."""
    ids, values, _ = prepared.split(split)
    random = np.random.default_rng(SEED)

    def select(rows: NDArray[np.generic], kind: Kind, side: Side, chosen: Sequence[int]) -> NDArray[np.generic]:
        columns = [i for i, field in enumerate(prepared.schema.select(kind)) if field.side == side]
        return rows[chosen][:, columns]

    requests = []
    for _ in range(REQUESTS):
        context, *candidates = random.choice(len(ids), CANDIDATES + 1, replace=False)
        requests.append(
            ModelInput(
                select(ids, "categorical", "context", [context]).astype(np.int64),
                select(ids, "categorical", "candidate", candidates).astype(np.int64),
                select(values, "numeric", "context", [context]).astype(np.float32),
                select(values, "numeric", "candidate", candidates).astype(np.float32),
            )
        )
    return requests


def run_graphs(folder: Path, requests: Sequence[ModelInput]) -> tuple[Logits, Logits]:
    """Return the logits of the first level and of the whole model, (requests, candidates) each."""
    screen, model = (
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"]) for name in (SCREEN, MODEL)
    )
    feeds = [join([request]) for request in requests]
    screens, logits = ([session.run([OUTPUT], feed)[0] for feed in feeds] for session in (screen, model))
    return np.array(screens), np.array(logits)
