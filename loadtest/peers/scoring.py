"""What every peer does with a request: look the tokens up, run the graph, answer probabilities.

The folder has the graph, its weights, and vocabulary.json: {"context": [[field, {token: id}], ...], "candidate": ...},
the fields in the graph's order. Needs numpy and onnxruntime alone, so that no framework's environment gets more.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

UNKNOWN, MISSING = 0, 1
Features = Mapping[str, str]
Request = Mapping[str, Any]  # {"context": Features, "candidates": [{"id": ..., "features": Features}, ...]}


class Side:
    """The fields of a context or of a candidate. Shape of its ids: (rows, fields)."""

    def __init__(self, fields: Sequence[tuple[str, dict[str | None, int]]]) -> None:
        # A field that a row does not have is looked up as None: one look-up answers both questions.
        self._fields = [(name, {**ids, None: MISSING}.get) for name, ids in fields]

    def ids(self, rows: Sequence[Features]) -> NDArray[np.int64]:
        found = [id_of(row.get(name), UNKNOWN) for row in rows for name, id_of in self._fields]
        return np.array(found, np.int64).reshape(len(rows), len(self._fields))


class Scorer:
    """One thread a session and no spinning: a worker process is what there is one of for each core."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = folder / os.environ.get("PEER_GRAPH", "plain.onnx")
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        vocabulary = json.loads((folder / "vocabulary.json").read_bytes())
        self._context, self._candidate = Side(vocabulary["context"]), Side(vocabulary["candidate"])

    def score(self, request: Request) -> dict[str, Any]:
        """{"scores": [{"id": ..., "ctr": ...}, ...]}, in the order of the candidates."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """In one run of the graph, for a framework that batches."""
        sizes = [len(request["candidates"]) for request in requests]
        candidates = [candidate for request in requests for candidate in request["candidates"]]
        ctr = self._ctr(
            self._context.ids([request["context"] for request in requests]),
            self._candidate.ids([candidate["features"] for candidate in candidates]),
            np.repeat(np.arange(len(requests)), sizes),
        )
        scores = [{"id": c["id"], "ctr": p} for c, p in zip(candidates, ctr, strict=True)]
        ends = np.cumsum(sizes).tolist()
        return [{"scores": scores[end - size : end]} for end, size in zip(ends, sizes, strict=True)]

    def _ctr(
        self, context: NDArray[np.int64], candidate: NDArray[np.int64], request_index: NDArray[np.int64]
    ) -> list[float]:
        feed = {"context_ids": context, "candidate_ids": candidate, "request_index": request_index}
        logit = self._session.run(["logit"], feed)[0].astype(np.float64)
        ctr: list[float] = (1 / (1 + np.exp(-logit))).tolist()
        return ctr
