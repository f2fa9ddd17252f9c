"""Load for a running service: locust -f loadtest/ctr.py --host http://127.0.0.1:8000

Each user sends one request a second on average, at random: `--users 100` is a Poisson stream of 100 requests/s, as
loadtest/openloop/bodies.py draws them. Candidates: 1, 10, 100 or 500, in the proportions of WEIGHTS;
`--tags candidates-10` sends only those of 10, and `--candidates 7` only requests of 7. `--shape ramp-steady-spike`
varies the users.

Prints p50, p90, p99 and p99.9 of the client's own clock at the end, and says by how much --slo-p99-ms or --slo-failures
was missed: then the exit code is 1.

It is a closed loop: a server that stalls is asked less. Read it as a smoke figure; loadtest/openloop/load.py measures.
"""

import json
import logging
import random
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gevent
import locust.stats
from locust import FastHttpUser, LoadTestShape, events, tag
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from contract.bundle import open_bundle
from loadtest.closed_loop import Latencies, Slo
from loadtest.load_shape import RAMP_STEADY_SPIKE, Shape
from loadtest.openloop.bodies import Requests

WEIGHTS = {1: 20, 10: 40, 100: 35, 500: 5}  # candidates -> of 100 requests so many: 64 candidates on average
FEWEST_BODIES, MOST_BODIES, DRAWN_CANDIDATES = 20, 200, 20_000  # of each size
JSON = {"Content-Type": "application/json"}
PATH = "/v1/score"


def scoring(candidates: int) -> Callable[["AdServer"], None]:
    """A task with the tag candidates-<candidates>."""

    def score(user: "AdServer") -> None:
        user.score(candidates)

    score.__name__ = f"score_{candidates}"
    tagged: Callable[[AdServer], None] = tag(f"candidates-{candidates}")(score)
    return tagged


class AdServer(FastHttpUser):
    tasks = [task for candidates, weight in WEIGHTS.items() for task in [scoring(candidates)] * weight]  # noqa: RUF012
    # Drawn before the first request: what the client computes between requests it would measure as latency.
    bodies: ClassVar[dict[int, list[str]]] = {}

    def wait_time(self) -> float:
        """Seconds. Exponential, so that all users together are a Poisson stream; locust's constant_throughput
        starts all users' seconds at the same moment, which is a burst a second."""
        return random.expovariate(1.0)

    def on_start(self) -> None:
        self.wait()  # or all the users that start in one moment would ask in it

    def score(self, candidates: int) -> None:
        body, name = random.choice(self.bodies[candidates]), f"{PATH} {candidates}"  # noqa: S311
        with self.client.post(PATH, data=body, headers=JSON, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
            elif response.content.count(b'"ctr"') != candidates:
                response.failure("another number of scores than candidates")


class Shaped(LoadTestShape):
    abstract = True  # or locust would take it in every run, and leave --users alone

    def __init__(self, shape: Shape, most_s: float | None) -> None:
        super().__init__()
        self._shape = shape
        self._most_s = most_s

    def tick(self) -> tuple[int, float] | None:
        since_s = self.get_run_time()
        users = self._shape.users_at(since_s)
        if users is None or (self._most_s and since_s >= self._most_s):
            return None
        # Locust looks once a second and waits for the users to start: all of a second's at once, or it falls behind.
        return users, max(self._shape.users, self._shape.spike_users)


@events.init_command_line_parser.add_listener
def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--bundle", default="deploy/demo", help="the bundle that the server has open")
    parser.add_argument("--candidates", type=int, default=0, help="in every request; 0: a mix, see --tags")
    parser.add_argument("--load-seed", type=int, default=1)
    parser.add_argument("--slo-p99-ms", type=float, help="of the answers; exit code 1 when it is missed")
    parser.add_argument("--slo-failures", type=float, help="share of requests that may fail, of 1; else exit code 1")
    parser.add_argument("--shape", choices=[RAMP_STEADY_SPIKE], help="of --users over time; it ends by itself")
    parser.add_argument("--ramp-s", type=float, default=Shape.ramp_s, help="from 1 user to --users")
    parser.add_argument("--steady-s", type=float, default=Shape.steady_s, help="at --users")
    parser.add_argument("--spike-s", type=float, default=Shape.spike_s, help="at --spike-users")
    parser.add_argument("--spike-users", type=int, default=0, help="0: three times --users")
    parser.add_argument("--down-s", type=float, default=Shape.down_s, help="from --users to none")


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    options = environment.parsed_options
    if options is None:
        return
    if options.candidates and (options.tags or options.exclude_tags):
        raise SystemExit("--candidates is one size, and --tags chooses among several: give one of them")
    locust.stats.bucket_response_time = three_digits  # type: ignore[assignment]  # it says int, and is right with floats
    draw(options)
    observe(environment, Slo(options.slo_p99_ms, options.slo_failures))
    if options.shape:
        environment.shape_class = Shaped(shape(options), options.run_time)
        environment.shape_class.runner = environment.runner
    # gevent's clock stands still while nothing waits: a slow start would count towards --run-time, or be all of it.
    gevent.get_hub().loop.update_now()


def three_digits(ms: float) -> float:
    """What locust's HTML and JSON reports keep of a time, which else are whole milliseconds."""
    return float(f"{ms:.3g}")


def draw(options: Namespace) -> None:
    if options.candidates:
        AdServer.tasks = [scoring(options.candidates)]
    bundle = open_bundle(Path(options.bundle))
    for candidates in [options.candidates] if options.candidates else WEIGHTS:
        requests = Requests(bundle, candidates, options.load_seed + candidates)
        number = max(FEWEST_BODIES, min(MOST_BODIES, DRAWN_CANDIDATES // candidates))
        AdServer.bodies[candidates] = [json.dumps(requests.draw()) for _ in range(number)]


def shape(options: Namespace) -> Shape:
    users = options.num_users or 1
    spike_users = options.spike_users or 3 * users
    return Shape(users, spike_users, options.ramp_s, options.steady_s, options.spike_s, options.down_s)


def observe(environment: Environment, slo: Slo) -> None:
    """Where locust runs in several processes, the workers' latencies go to the one that prints."""
    latencies = Latencies()

    def record(name: str, response_time: float, exception: Exception | None, **_: object) -> None:
        if exception is None:
            latencies.record(f"candidates-{name.rpartition(' ')[2]}", response_time)
        else:
            latencies.record_failure()

    def send(data: dict[str, Any], **_: object) -> None:
        data["latencies"] = latencies.take()

    def receive(data: dict[str, Any], **_: object) -> None:
        latencies.add(data["latencies"])

    environment.events.request.add_listener(record)
    if isinstance(environment.runner, WorkerRunner):
        environment.events.report_to_master.add_listener(send)
        return
    if isinstance(environment.runner, MasterRunner):
        environment.events.worker_report.add_listener(receive)
    conclude(environment, latencies, slo)


def conclude(environment: Environment, latencies: Latencies, slo: Slo) -> None:
    def judge(**_: object) -> None:
        if latencies.missed(slo):
            environment.process_exit_code = 1
        elif slo.failures is not None and environment.runner and not environment.runner.exceptions:
            environment.process_exit_code = 0  # locust's own is 1 for any failure

    def report(**_: object) -> None:
        log = logging.getLogger("ctr")
        for line in latencies.lines():
            log.info("%s", line)
        for sentence in latencies.missed(slo):
            log.error("%s", sentence)

    environment.events.quitting.add_listener(judge)
    environment.events.quit.add_listener(report)
