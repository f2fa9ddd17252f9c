"""BentoML: worker processes, each with an ASGI application that validates types and scores in a thread.

Tuned for two cores: one worker for each, with four threads. The workers share the listening socket unevenly, and one
with most of the connections needs threads to use both cores. Requests/s of 100 candidates: 61 to 124 in six runs,
median 107; with one thread 48 to 129 in six, median 61. `async def` (74 and 98) and disabled metrics (66 and 81) did
not help. No adaptive batching: it expects a list of requests in each request, and mosec_server.py shows that batching
does not help. The rates are from runs of some seconds on a shared machine: they justify these settings and do not
compare servers.
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
