"""Calibrates the cascade's margins (contract/cascade.py) on requests drawn from the held-out splits of the log.

A drawn request is the context of one row and the candidate fields of other rows: a log of rows does not say which
candidates lost an auction. The margins are set on valid; recall and saving are measured on test.
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
from model.experiments.run_folder import check_log_of_run

KS = (1, 3, 10, 30)
REQUESTS = 300
CANDIDATES = 100
RECALL = 0.999  # what the margins aim at
MOST_SCORED = 0.5  # looking twice at more than that would cost what it saves
SEED = 1

Logits = NDArray[np.float32]


def check_log(prepared: Prepared, run: Path) -> None:
    """Raises ValueError when the log is not the one that the run was trained on, or is too small to draw from."""
    check_log_of_run(run, prepared)
    for split in ("valid", "test"):
        if (rows := prepared.facts.splits[split].rows) <= CANDIDATES:
            raise ValueError(
                f"{prepared.folder}: {split} has {rows} rows, a cascade needs more than {CANDIDATES}: hold more out"
            )


def calibrate(folder: Path, prepared: Prepared) -> list[CascadeRule]:
    """A rule for each k of KS that saves something, for the graphs in `folder`; none where the first level says little.

    prepared: a log that check_log() takes.
    """
    valid, test = (_logits(folder, draw_requests(prepared, split)) for split in ("valid", "test"))
    rules = [measure(*test, k, calibrated_margin(*valid, k)) for k in KS]
    return [rule for rule in rules if rule.scored <= MOST_SCORED]


def calibrated_margin(screen: Logits, full: Logits, k: int) -> float:
    """What keeps RECALL of the best k. Shape: the first level's and the model's logits (requests, candidates)."""
    best = np.argpartition(-full, k - 1, axis=1)[:, :k]
    kth_best = -np.partition(-screen, k - 1, axis=1)[:, k - 1 : k]
    shortfall = np.maximum(kth_best - np.take_along_axis(screen, best, axis=1), 0)
    needed = float(np.quantile(shortfall, RECALL, method="higher"))
    return math.ceil(needed * 1e4) / 1e4  # up: rounding must lose nobody


def measure(screen: Logits, full: Logits, k: int, margin: float) -> CascadeRule:
    """Recall and saving of a rule; shapes as for calibrated_margin()."""
    kept = np.array([survivors(row, k, margin, screen.shape[1]) for row in screen])
    best = np.argpartition(-full, k - 1, axis=1)[:, :k]
    recall = np.take_along_axis(kept, best, axis=1).mean()
    requests, candidates = full.shape
    return CascadeRule(k, margin, round(float(recall), 4), round(float(kept.mean()), 4), candidates, requests)


def draw_requests(prepared: Prepared, split: str) -> list[ModelInput]:
    """REQUESTS contexts, each with CANDIDATES other rows' candidate fields."""
    ids, values, _ = prepared.split(split)
    random = np.random.default_rng(SEED)
    requests = []
    for _ in range(REQUESTS):
        context, *candidates = random.choice(len(ids), CANDIDATES + 1, replace=False)
        requests.append(
            ModelInput(
                _side(prepared, ids, "categorical", "context", [context]).astype(np.int64),
                _side(prepared, ids, "categorical", "candidate", candidates).astype(np.int64),
                _side(prepared, values, "numeric", "context", [context]).astype(np.float32),
                _side(prepared, values, "numeric", "candidate", candidates).astype(np.float32),
            )
        )
    return requests


def _side(
    prepared: Prepared, rows: NDArray[np.generic], kind: Kind, side: Side, chosen: Sequence[int]
) -> NDArray[np.generic]:
    columns = [i for i, field in enumerate(prepared.schema.select(kind)) if field.side == side]
    return rows[chosen][:, columns]


def _logits(folder: Path, requests: Sequence[ModelInput]) -> tuple[Logits, Logits]:
    """The first level's and the model's, (requests, candidates) each."""
    screen, model = (
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"]) for name in (SCREEN, MODEL)
    )
    feeds = [join([one]) for one in requests]
    screens, logits = ([session.run([OUTPUT], feed)[0] for feed in feeds] for session in (screen, model))
    return np.array(screens), np.array(logits)
