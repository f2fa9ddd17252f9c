"""LitServe: uvicorn processes for HTTP, and worker processes for the model, with queues between them.

Tuned for two cores: one model process per core with one onnxruntime thread, and the same number of HTTP processes. With
100 candidates, three pairs of runs gave 99, 131 and 131 requests/s with two HTTP processes, and 90, 109 and 122 with
one. `fast_queue` (ZeroMQ) is off: it was sometimes faster and sometimes slower for single candidates. Batching is off:
see mosec_server.py. The rates come from runs of a few seconds on a shared machine. They justify these settings, but are
too short to compare servers.
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
