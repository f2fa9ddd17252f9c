"""Closed-loop load on a running service: locust -f loadtest/ctr.py --host http://127.0.0.1:8000

Each user sends one request per second on average, at random times: `--users 100` is a Poisson stream of 100 requests/s.
loadtest/openloop/bodies.py generates the requests. They have 1, 10, 100 or 500 candidates, in the proportions given by
WEIGHTS. `--tags candidates-10` sends only requests with 10 candidates, `--candidates 7` only requests with 7, and
`--shape ramp-steady-spike` varies the number of users.

At the end, the script prints p50, p90, p99 and p99.9 as measured by the client. If --slo-p99-ms or --slo-failures is
exceeded, it also prints by how much, and the exit code is 1.

A closed loop sends fewer requests to a server that stalls. Use this script as a smoke test, and
loadtest/openloop/load.py to measure latency.
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

WEIGHTS = {1: 20, 10: 40, 100: 35, 500: 5}  # number of candidates -> percent of the requests; 64 candidates on average
MIN_BODIES, MAX_BODIES, DRAWN_CANDIDATES = 20, 200, 20_000  # per size
JSON = {"Content-Type": "application/json"}
PATH = "/v1/score"


def scoring(candidates: int) -> Callable[["AdServer"], None]:
    """Return a task, tagged candidates-<candidates>, that sends requests with this many candidates."""

    def score(user: "AdServer") -> None:
        user.score(candidates)

    score.__name__ = f"score_{candidates}"
    tagged: Callable[[AdServer], None] = tag(f"candidates-{candidates}")(score)
    return tagged


class AdServer(FastHttpUser):
    tasks = [task for candidates, weight in WEIGHTS.items() for task in [scoring(candidates)] * weight]  # noqa: RUF012
    # Generated before the first request, because client work between two requests would be measured as latency.
    bodies: ClassVar[dict[int, list[str]]] = {}

    def wait_time(self) -> float:
        """Return the seconds until the next request, exponentially distributed.

        All users together then form a Poisson stream. locust's constant_throughput would send a burst every second.
        """
        return random.expovariate(1.0)

    def on_start(self) -> None:
        self.wait()  # otherwise users that start together would send their first requests together

    def score(self, candidates: int) -> None:
        body, name = random.choice(self.bodies[candidates]), f"{PATH} {candidates}"  # noqa: S311
        with self.client.post(PATH, data=body, headers=JSON, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
            elif response.content.count(b'"ctr"') != candidates:
                response.failure("the number of scores differs from the number of candidates")


class Shaped(LoadTestShape):
    """Adapts a Shape to locust.

    Args:
        shape: The number of users over time.
        max_s: Seconds after which the load ends, even if the shape is longer.
    """

    abstract = True  # otherwise locust would use it in every run and ignore --users

    def __init__(self, shape: Shape, max_s: float | None) -> None:
        super().__init__()
        self._shape = shape
        self._max_s = max_s

    def tick(self) -> tuple[int, float] | None:
        since_s = self.get_run_time()
        users = self._shape.users_at(since_s)
        if users is None or (self._max_s and since_s >= self._max_s):
            return None
        # Locust calls this once a second and waits until the users have started. The spawn rate is high enough to start
        # all users of a second together; with a lower one, locust would fall behind the shape.
        return users, max(self._shape.users, self._shape.spike_users)


@events.init_command_line_parser.add_listener
def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--bundle", default="deploy/demo", help="bundle that the server serves")
    parser.add_argument("--candidates", type=int, default=0, help="candidates per request (default: a mix, see --tags)")
    parser.add_argument("--load-seed", type=int, default=1)
    parser.add_argument("--slo-p99-ms", type=float, help="maximum p99 of the answers; exit code 1 if exceeded")
    parser.add_argument("--slo-failures", type=float, help="maximum share of failures, 0 to 1; exit code 1 if exceeded")
    parser.add_argument("--shape", choices=[RAMP_STEADY_SPIKE], help="vary --users over time; the run ends on its own")
    parser.add_argument("--ramp-s", type=float, default=Shape.ramp_s, help="seconds from 1 user to --users")
    parser.add_argument("--steady-s", type=float, default=Shape.steady_s, help="seconds at --users")
    parser.add_argument("--spike-s", type=float, default=Shape.spike_s, help="seconds at --spike-users")
    parser.add_argument("--spike-users", type=int, default=0, help="default: three times --users")
    parser.add_argument("--down-s", type=float, default=Shape.down_s, help="seconds from --users to 0")


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    options = environment.parsed_options
    if options is None:
        return
    if options.candidates and (options.tags or options.exclude_tags):
        raise SystemExit(
            "--candidates sets a single request size, and --tags selects from several sizes: "
            "use one option or the other, not both"
        )
    locust.stats.bucket_response_time = three_digits  # type: ignore[assignment]  # annotated as int, works with floats
    draw_bodies(options)
    observe(environment, Slo(options.slo_p99_ms, options.slo_failures))
    if options.shape:
        environment.shape_class = Shaped(shape(options), options.run_time)
        environment.shape_class.runner = environment.runner
    # gevent's clock does not advance while nothing waits. Without this, a slow start would count towards --run-time.
    gevent.get_hub().loop.update_now()


def three_digits(ms: float) -> float:
    """Round a response time for locust's HTML and JSON reports. By default, they store whole milliseconds."""
    return float(f"{ms:.3g}")


def draw_bodies(options: Namespace) -> None:
    """Generate the requests for all sizes that the options select."""
    if options.candidates:
        AdServer.tasks = [scoring(options.candidates)]
    bundle = open_bundle(Path(options.bundle))
    for candidates in [options.candidates] if options.candidates else WEIGHTS:
        requests = Requests(bundle, candidates, options.load_seed + candidates)
        number = max(MIN_BODIES, min(MAX_BODIES, DRAWN_CANDIDATES // candidates))
        AdServer.bodies[candidates] = [json.dumps(requests.draw()) for _ in range(number)]


def shape(options: Namespace) -> Shape:
    users = options.num_users or 1
    spike_users = options.spike_users or 3 * users
    return Shape(users, spike_users, options.ramp_s, options.steady_s, options.spike_s, options.down_s)


def observe(environment: Environment, slo: Slo) -> None:
    """Record latencies. With several processes, locust's workers send theirs to the master, which writes the report."""
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
    report_at_end(environment, latencies, slo)


def report_at_end(environment: Environment, latencies: Latencies, slo: Slo) -> None:
    """When locust ends, log the latencies and SLO violations, and set the exit code accordingly."""

    def set_exit_code(**_: object) -> None:
        if latencies.violations(slo):
            environment.process_exit_code = 1
        elif slo.failures is not None and environment.runner and not environment.runner.exceptions:
            environment.process_exit_code = 0  # by default, locust exits with 1 after any failure

    def report(**_: object) -> None:
        log = logging.getLogger("ctr")
        for line in latencies.lines():
            log.info("%s", line)
        for violation in latencies.violations(slo):
            log.error("%s", violation)

    environment.events.quitting.add_listener(set_exit_code)
    environment.events.quit.add_listener(report)
