"""Load for a running service: locust -f loadtest/ctr.py --host http://127.0.0.1:8000

Each user sends one request a second on average, at random: `--users 100` is a Poisson stream of 100
requests/s, as loadtest/bodies.py draws them. Candidates: 1 to 200, log-uniform, or as many as --candidates
says. Prints p50, p99 and p99.9 of the client's own clock at the end.

It is a closed loop: a server that stalls is asked less. Read it as a smoke figure; loadtest/openloop.py measures.
"""

import json
import logging
import random
from argparse import ArgumentParser
from pathlib import Path
from typing import ClassVar

from hdrh.histogram import HdrHistogram
from locust import FastHttpUser, events, task
from locust.env import Environment

from contract.bundle import open_bundle
from loadtest.bodies import Requests

LONGEST_US = 60_000_000
BODIES = 200
JSON = {"Content-Type": "application/json"}


class AdServer(FastHttpUser):
    # Drawn before the first request: what the client computes between requests it would measure as latency.
    bodies: ClassVar[list[tuple[str, int]]] = []

    def wait_time(self) -> float:
        """Seconds. Exponential, so that all users together are a Poisson stream; locust's constant_throughput
        starts all users' seconds at the same moment, which is a burst a second."""
        return random.expovariate(1.0)

    @task
    def score(self) -> None:
        body, candidates = random.choice(self.bodies)  # noqa: S311
        with self.client.post("/v1/score", data=body, headers=JSON, name="/v1/score", catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
            elif response.content.count(b'"ctr"') != candidates:
                response.failure("another number of scores than candidates")


@events.init_command_line_parser.add_listener
def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--bundle", default="deploy/demo", help="the bundle that the server has open")
    parser.add_argument("--candidates", type=int, default=0, help="in every request; 0: 1 to 200, log-uniform")
    parser.add_argument("--load-seed", type=int, default=1)


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    if environment.parsed_options is None:
        return
    options = environment.parsed_options
    requests = Requests(open_bundle(Path(options.bundle)), options.candidates or None, options.load_seed)
    drawn = [requests.draw() for _ in range(BODIES)]
    AdServer.bodies = [(json.dumps(body), len(body["candidates"])) for body in drawn]
    histogram = HdrHistogram(1, LONGEST_US, 3)

    def record(response_time: float, exception: Exception | None, **_: object) -> None:
        if exception is None:
            histogram.record_value(max(1, min(LONGEST_US, round(response_time * 1000))))

    def report(**_: object) -> None:
        quantiles = ", ".join(f"p{q:g} {histogram.get_value_at_percentile(q) / 1000:.2f} ms" for q in (50, 99, 99.9))
        logging.getLogger("ctr").info("answered %d requests: %s", histogram.get_total_count(), quantiles)

    environment.events.request.add_listener(record)
    environment.events.quit.add_listener(report)
