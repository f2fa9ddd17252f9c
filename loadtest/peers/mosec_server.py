"""mosec: a front end in Rust for HTTP and queues, and Python worker processes behind a Unix socket.

Tuned for two cores: one worker process per core, with one onnxruntime thread each. Dynamic batching is off: a request
with 100 candidates takes 11.3 ms of CPU on its own, 11.2 ms in batches of two and 11.3 ms in batches of four, so
waiting for a batch only adds latency. (Batching would speed up the graph for single candidates.) The worker parses JSON
in Python, which is its default. The front end has its default number of threads.
"""

import os
from pathlib import Path
from typing import Any

from mosec import Server, Worker
from scoring import Scorer


class Scoring(Worker):
    def __init__(self) -> None:
        super().__init__()
        self._scorer = Scorer(Path(os.environ["PEER_FOLDER"]))

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._scorer.score(data)
        return answer


if __name__ == "__main__":
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": os.environ["PEER_PORT"], "MOSEC_LOG_LEVEL": "warning"}
    server = Server()
    server.append_worker(Scoring, num=int(os.environ.get("PEER_WORKERS", "2")), route="/v1/score")
    server.run()
