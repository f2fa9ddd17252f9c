"""LitServe: uvicorn processes that speak HTTP, and worker processes that hold the model, with queues between them.

Tuned for two cores: a model's process for each, with one thread of onnxruntime, and as many processes for HTTP: in
three pairs of runs, 99, 131, 131 requests/s of 100 candidates with two and 90, 109, 122 with one. Not `fast_queue`
(ZeroMQ): of single candidates it answered now more and now fewer. No batching, see mosec_server.py. Rates are of runs
of some seconds on a machine that others used too: they choose, they do not compare.
"""

import os
from pathlib import Path
from typing import Any

import litserve
from scoring import Scorer


class Scoring(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._scorer = Scorer(Path(os.environ["PEER_FOLDER"]))

    def predict(self, x: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._scorer.score(x)
        return answer


if __name__ == "__main__":
    workers = int(os.environ.get("PEER_WORKERS", "2"))
    server = litserve.LitServer(
        Scoring(api_path="/v1/score"),
        accelerator="cpu",
        devices=1,
        workers_per_device=workers,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        num_api_servers=workers,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
