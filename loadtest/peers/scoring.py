"""Scoring code shared by all other servers: look up the tokens, run the graph, return probabilities.

The folder contains the graph, its weights, and vocabulary.json: {"context": [[field, {token: id}], ...],
"candidate": ...}, with the fields in the graph's order. This file imports only numpy and onnxruntime, so that it runs
in every framework's environment.
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
    """The fields of contexts or candidates, and the ids of their tokens."""

    def __init__(self, fields: Sequence[tuple[str, dict[str | None, int]]]) -> None:
        # A missing field is looked up as None, so that a single lookup handles both unknown and missing values.
        self._fields = [(name, {**ids, None: MISSING}.get) for name, ids in fields]

    def ids(self, rows: Sequence[Features]) -> NDArray[np.int64]:
        """Return ids of shape (rows, fields)."""
        found = [id_of(row.get(name), UNKNOWN) for row in rows for name, id_of in self._fields]
        return np.array(found, np.int64).reshape(len(rows), len(self._fields))


class Scorer:
    """Runs the graph on one thread, without spinning, because there is one worker process per core."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = folder / os.environ.get("PEER_GRAPH", "plain.onnx")
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        vocabulary = json.loads((folder / "vocabulary.json").read_bytes())
        self._context, self._candidate = Side(vocabulary["context"]), Side(vocabulary["candidate"])

    def score(self, request: Request) -> dict[str, Any]:
        """Return {"scores": [{"id": ..., "ctr": ...}, ...]} in the order of the request's candidates."""
        return self.score_many([request])[0]

    def score_many(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Score several requests in one run of the graph, for frameworks that batch."""
        sizes = [len(request["candidates"]) for request in requests]
        candidates = [candidate for request in requests for candidate in request["candidates"]]
        feed = {
            "context_ids": self._context.ids([request["context"] for request in requests]),
            "candidate_ids": self._candidate.ids([candidate["features"] for candidate in candidates]),
            "request_index": np.repeat(np.arange(len(requests)), sizes),
        }
        logit = self._session.run(["logit"], feed)[0].astype(np.float64)
        ctr: list[float] = (1 / (1 + np.exp(-logit))).tolist()
        scores = [{"id": c["id"], "ctr": p} for c, p in zip(candidates, ctr, strict=True)]
        ends = np.cumsum(sizes).tolist()
        return [{"scores": scores[end - size : end]} for end, size in zip(ends, sizes, strict=True)]
