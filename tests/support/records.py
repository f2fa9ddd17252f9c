"""Records of an open-loop load."""

import numpy as np

from loadtest.openloop import records as read


def record(intended_s: float = 0.0, late_s: float = 0.0, took_s: float = 0.01, status: int = 200) -> tuple[object, ...]:
    sent_s = intended_s + late_s
    return intended_s, sent_s, sent_s + took_s, status, 50, False, False, False, False


def records(*rows: tuple[object, ...]) -> read.Records:
    return np.array(list(rows), read.RECORD)
