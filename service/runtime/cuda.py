"""Runs the serving graph on a GPU: in a few shapes only, and with its arrays bound.

A GPU's libraries plan anew for every shape they have not seen; padded to the next power of two there are few. What is
bound is copied once each way, and not looked up by name again in every run.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import OUTPUT
from service.runtime.onnx_session import Feed

LEAST_ROWS = 16


class BucketRunner:
    """A session that sees row counts of powers of two only. It may be called from several threads."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, feed: Feed) -> NDArray[np.float32]:
        """The logits (N) of the serving graph's inputs."""
        binding = self._session.io_binding()
        for name, array in pad(feed).items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(OUTPUT, "cpu")
        self._session.run_with_iobinding(binding)
        logit: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return logit[: len(feed["request_index"])]

    def warm_up(self, feed: Feed, max_rows: int) -> None:
        """Runs every shape once that a batch of up to max_rows candidates can be padded to. feed: one candidate's."""
        candidates = LEAST_ROWS
        while candidates < 2 * max_rows:
            requests = 1
            while requests <= candidates:
                sizes = {name: requests if name.startswith("context") else candidates for name in feed}
                self({name: array.repeat(sizes[name], 0) for name, array in feed.items()})
                requests *= 2
            candidates *= 2


def pad(feed: Feed) -> dict[str, NDArray[np.generic]]:
    """Requests and candidates up to the next power of two. What is added belongs to the first request, and its ids
    are 0: known to every model."""
    requests, candidates = bucket(len(feed["context_ids"]), 1), bucket(len(feed["request_index"]), LEAST_ROWS)
    padded = {}
    for name, array in feed.items():
        rows = requests if name.startswith("context") else candidates
        padded[name] = np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
    return padded


def bucket(rows: int, least: int) -> int:
    """The smallest power of two that is at least as large as both."""
    return 1 << (max(rows, least, 1) - 1).bit_length()
