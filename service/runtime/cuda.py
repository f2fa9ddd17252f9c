"""Run the serving graph on a GPU, with few distinct shapes and with bound arrays.

The GPU libraries create a new plan for every new shape. Padding to the next power of two keeps the number of shapes
small. Bound arrays are copied once in each direction and are not looked up by name in every run.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import OUTPUT
from service.runtime.onnx_session import Feed

MIN_ROWS = 16


class BucketRunner:
    """Runs an onnxruntime session with row counts that are powers of two. Safe to call from several threads."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, feed: Feed) -> NDArray[np.float32]:
        """Return the logits of the serving graph. Shape: (N) for N candidates."""
        binding = self._session.io_binding()
        for name, array in pad(feed).items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(OUTPUT, "cpu")
        self._session.run_with_iobinding(binding)
        logit: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return logit[: len(feed["request_index"])]

    def warm_up(self, feed: Feed, max_rows: int) -> None:
        """Run once with each shape to which a batch of up to `max_rows` candidates can be padded.

        Args:
            feed: The inputs of one request with one candidate.
            max_rows: Maximum number of candidates in a batch.
        """
        candidates = MIN_ROWS
        while candidates < 2 * max_rows:
            requests = 1
            while requests <= candidates:
                sizes = {name: requests if name.startswith("context") else candidates for name in feed}
                self({name: array.repeat(sizes[name], 0) for name, array in feed.items()})
                requests *= 2
            candidates *= 2


def pad(feed: Feed) -> dict[str, NDArray[np.generic]]:
    """Pad the requests and the candidates to the next power of two.

    The added candidates belong to the first request, and their ids are 0, which every model accepts.
    """
    requests, candidates = bucket(len(feed["context_ids"]), 1), bucket(len(feed["request_index"]), MIN_ROWS)
    padded = {}
    for name, array in feed.items():
        rows = requests if name.startswith("context") else candidates
        padded[name] = np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
    return padded


def bucket(rows: int, minimum: int) -> int:
    """Return the smallest power of two that is at least `rows` and at least `minimum`."""
    return 1 << (max(rows, minimum, 1) - 1).bit_length()
