"""BentoML: worker processes, each with an ASGI application that validates types and scores in a thread.

Tuned for two cores: one worker per core, with four threads each. Connections are spread unevenly over the workers, and
a worker with most of the connections needs threads to use both cores. With 100 candidates, six runs gave 61 to 124
requests/s (median 107); with one thread, 48 to 129 (median 61). `async def` (74 and 98) and disabling metrics (66 and
81) did not help. Adaptive batching is off: it expects a list of requests in each request, and mosec_server.py shows
that batching does not help. The rates come from runs of a few seconds on a shared machine. They justify these settings,
but are too short to compare servers.
"""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
from pydantic import BaseModel
from scoring import Scorer


class Candidate(BaseModel):
    id: int | str
    features: dict[str, str]


@bentoml.service(
    workers=int(os.environ.get("PEER_WORKERS", "2")),
    threads=4,
    traffic={"timeout": 10},
    logging={"access": {"enabled": False}},
)
class Scoring:
    def __init__(self) -> None:
        self._scorer = Scorer(Path(os.environ["PEER_FOLDER"]))

    @bentoml.api(route="/v1/score")
    def score(self, context: dict[str, str], candidates: list[Candidate]) -> dict[str, Any]:
        answer: dict[str, Any] = self._scorer.score(
            {"context": context, "candidates": [candidate.model_dump() for candidate in candidates]}
        )
        return answer


if __name__ == "__main__":
    bento = str(Path(sys.executable).with_name("bentoml"))
    address = ["--host", "127.0.0.1", "--port", os.environ["PEER_PORT"]]
    os.execv(bento, [bento, "serve", "bentoml_service:Scoring", *address, "--quiet"])  # noqa: S606
