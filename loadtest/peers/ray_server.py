"""Ray Serve: HAProxy in front of replicas, which are actors in their own processes.

Tuned for two cores: one replica per core, with one onnxruntime thread each, and the high-throughput settings from Ray's
documentation, which servers.py passes. These settings replace the Python proxy with HAProxy (640 to 1,100 requests/s
instead of 120 to 180 with one candidate, 95 to 124 instead of 43 to 83 with 100 candidates), and run a replica's code
in the event loop that received the request. Each replica has at most 16 requests in flight. With 100 clients, this gave
150 and 73 requests/s, compared with 61 for a limit of 100. Batching is off: see mosec_server.py. Ray's own token
authentication stays on, because its internal ports listen on all interfaces. The rates come from runs of a few seconds
on a shared machine. They justify these settings, but are too short to compare servers.
"""

import os
import signal
from pathlib import Path
from typing import Any

import ray
from ray import serve
from scoring import Scorer
from starlette.requests import Request


class Scoring:
    def __init__(self) -> None:
        self._scorer = Scorer(Path(os.environ["PEER_FOLDER"]))

    async def __call__(self, request: Request) -> Any:
        return self._scorer.score(await request.json())


if __name__ == "__main__":
    workers = int(os.environ.get("PEER_WORKERS", "2"))
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level="warning",
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    replicas = serve.deployment(Scoring).options(num_replicas=workers, max_ongoing_requests=16)
    serve.run(replicas.bind(), route_prefix="/v1/score")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
