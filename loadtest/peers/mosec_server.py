"""mosec: a front end in Rust for HTTP and queues, and Python worker processes behind a Unix socket.

Tuned for two cores: one worker process for each, with one thread of onnxruntime. No dynamic batching: a request of 100
candidates takes 11.3 ms of CPU alone, 11.2 in batches of two and 11.3 in batches of four, so waiting for a batch only
adds latency. (Single candidates would gain in the graph.) JSON is parsed by the worker's default, in Python. The front
end has its default number of threads.
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
