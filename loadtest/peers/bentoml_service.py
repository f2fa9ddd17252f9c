"""BentoML: worker processes, each with an ASGI application that checks types and hands scoring to a thread.

Tuned for two cores: a worker for each, with four threads. The workers share the listening socket, unevenly, and one
that has most of the connections needs threads to use both cores: 61 to 124 requests/s of 100 candidates in six runs,
median 107; with one thread 48 to 129 in six, median 61. `async def` (74, 98) and no metrics (66, 81) brought less. No
adaptive batching: it wants a list of requests in each request; and see mosec_server.py. Rates are of runs of some
seconds on a machine that others used too: they choose, they do not compare.
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
