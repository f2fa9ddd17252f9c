"""Test compose.yaml with a real Docker engine: make compose-test

Requires the image stec-ctr, which `make compose-test` builds. Grafana is not started, because the project contains only
its configuration, which tests/deploy checks.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from contract.bundle import open_bundle
from contract.score_ids import new_score_id
from loadtest.openloop.bodies import prepare
from loadtest.openloop.check import what_is_wrong
from loadtest.openloop.message import Prepared
from loadtest.servers import free_port

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "deploy" / "demo"
SERVICES = ("redis", "publish", "service", "collect", "prometheus")
PROJECT = "ctr-compose-test"
HEALTHY_S, RECORDED_S, STOP_S = 120.0, 90.0, 60.0
RULES = "/etc/prometheus/"
JSON = {"Content-Type": "application/json"}


class Failed(RuntimeError):
    """A check that failed."""


class Compose:
    """A separate Compose project, on free ports."""

    def __init__(self, compose: Sequence[str]) -> None:
        self._compose = [*compose, "--project-name", PROJECT, "--file", str(ROOT / "compose.yaml")]
        # Serve the demo bundle, whatever is set in the caller's environment.
        names = ("PORT", "COLLECT_PORT", "PROMETHEUS_PORT")
        self._ports = {"BUNDLE": "./deploy/demo", **{name: str(free_port()) for name in names}}
        self.collect = f"http://127.0.0.1:{self._ports['COLLECT_PORT']}"
        self.service = f"http://127.0.0.1:{self._ports['PORT']}"
        self.prometheus = f"http://127.0.0.1:{self._ports['PROMETHEUS_PORT']}"

    def __call__(self, *arguments: str) -> str:
        """Run a Compose command and return its standard output.

        Raises:
            Failed: The command failed.
        """
        return run([*self._compose, *arguments], self._ports)

    def inspect(self, service: str, what: str) -> str:
        container = self("ps", "--all", "--quiet", service).strip()
        return run(["docker", "inspect", "--format", what, container]).strip()


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)} exited with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def up(compose: Compose) -> Iterator[None]:
    """Start the services, and remove them on exit. After a failure, print the end of their logs."""
    try:
        compose("up", "--detach", "--no-build", *SERVICES)
        yield
    except (Failed, httpx.HTTPError):
        print(compose("logs", "--tail", "20"), file=sys.stderr)
        raise
    finally:
        compose("down", "--volumes", "--timeout", "5")


def becomes_healthy(compose: Compose) -> str:
    for service in ("service", "collect", "prometheus"):
        eventually(
            lambda service=service: compose.inspect(service, "{{.State.Health.Status}}") == "healthy",  # type: ignore[misc]
            HEALTHY_S,
            f"{service} did not become healthy",
        )
    return "service, collect and prometheus are healthy"


def is_locked_down(compose: Compose) -> str:
    user = compose("exec", "-T", "service", "id", "-u").strip()
    if user == "0":
        raise Failed("the service runs as root")
    if compose.inspect("service", "{{.HostConfig.ReadonlyRootfs}}") != "true":
        raise Failed("the service's root file system is writable")
    for module in ("torch", "onnx"):
        if "spec" in compose("exec", "-T", "service", "python", "-c", FIND.format(module)):
            raise Failed(f"the image contains {module}")
    return f"the service runs as user {user}, with a read-only root file system, without torch"


FIND = "import importlib.util as u; print('spec' if u.find_spec('{}') else 'none')"


def stores_an_event(compose: Compose) -> str:
    """Post an event, find it in the volume, and find a finished file with it after a stop and a start."""
    now_s = time.time()
    event = {
        "event_id": "compose-test",
        "type": "click",
        "score_id": new_score_id(now_s - 1, logged=True),
        "candidate": 0,
        "time": datetime.fromtimestamp(now_s, UTC).isoformat(),
    }
    answer = httpx.post(f"{compose.collect}/v1/events", json=event, timeout=10)
    if answer.status_code != 202:
        raise Failed(f"the event was not stored: {answer.text}")
    compose("restart", "collect")
    eventually(
        lambda: compose.inspect("collect", "{{.State.Health.Status}}") == "healthy",
        HEALTHY_S,
        "collect did not become healthy",
    )
    found = compose("exec", "-T", "collect", "sh", "-c", "cat /var/lib/ctr/events/events-*.ndjson")
    if "compose-test" not in found:
        raise Failed(f"the event is not in the volume: {found}")
    requests = compose("exec", "-T", "service", "sh", "-c", "cat /var/lib/ctr/requests/requests-*")
    if not requests:
        raise Failed("the request log is empty")
    return f"an event is in its volume after a restart, and the request log has {len(requests.splitlines())} lines"


def scores_with_redis(compose: Compose, requests: Sequence[Prepared]) -> str:
    # On a busy machine, Redis may miss its deadline of 10 ms. The service then skips Redis for some seconds.
    eventually(lambda: not score_all(compose, requests), HEALTHY_S, "answers were degraded although Redis is up")
    text = httpx.get(f"{compose.service}/metrics", timeout=10).text
    asked = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(IN_REDIS))
    if not asked:
        raise Failed("no token was looked up in Redis")
    return f"{len(requests)} requests scored correctly through {compose.service}, {asked:.0f} tokens from Redis"


IN_REDIS = 'ctr_vocabulary_tokens_total{tier="redis"}'


def is_recorded(compose: Compose, requests: Sequence[Prepared]) -> str:
    """Send requests until Prometheus has recorded a p99, which requires two scrapes with requests between them."""
    found: list[float] = []

    def recorded() -> bool:
        score_all(compose, requests)
        if query(compose, 'up{job="ctr"} == 1') and query(compose, 'up{job="ctr-collect"} == 1'):
            found[:] = [value for value in query(compose, "ctr:request_seconds:p99_1m") if 0 < value < 1]
        return bool(found)

    eventually(recorded, RECORDED_S, "Prometheus has no ctr:request_seconds:p99_1m")
    for arguments in (
        ("check", "config", f"{RULES}prometheus.yml"),
        ("test", "rules", f"{RULES}tests.yml", f"{RULES}tests-drift.yml"),
    ):
        compose("exec", "-T", "prometheus", "promtool", *arguments)
    return f"Prometheus scrapes, ctr:request_seconds:p99_1m is {found[0] * 1e3:.1f} ms; promtool finds no errors"


def query(compose: Compose, expression: str) -> list[float]:
    answer: dict[str, Any] = httpx.get(
        f"{compose.prometheus}/api/v1/query", params={"query": expression}, timeout=10
    ).json()
    return [float(series["value"][1]) for series in answer["data"]["result"]]


def scores_without_redis(compose: Compose, fresh: Sequence[Prepared]) -> str:
    """Score requests while Redis is down.

    Args:
        compose: The running project.
        fresh: Requests with tokens that no worker has cached, so that the service must look them up in Redis.
    """
    compose("kill", "redis")
    degraded = score_all(compose, fresh)
    if not degraded:
        raise Failed("no answer is marked degraded although Redis is down")
    return f"Redis killed: {len(fresh)} requests scored correctly, {degraded} of them marked degraded"


def score_all(compose: Compose, requests: Sequence[Prepared]) -> int:
    """Score all requests, and return the number of degraded answers.

    Raises:
        Failed: An answer was wrong.
    """
    degraded = 0
    with httpx.Client(base_url=compose.service, timeout=10) as client:
        for request in requests:
            answer = client.post("/v1/score", content=request.body, headers=JSON)
            problem = what_is_wrong(request, answer.content) if answer.status_code == 200 else answer.text
            if problem is not None:
                raise Failed(f"a wrong answer: {problem}")
            degraded += bool(answer.json()["degraded"])
    return degraded


def stops_without_losing_any(compose: Compose, requests: Sequence[Prepared]) -> str:
    """Stop the service under load. Clients send requests until /readyz answers 503, as behind a load balancer."""
    leaving, counted, lost = threading.Event(), [0] * 4, []

    def send(number: int) -> None:
        with httpx.Client(base_url=compose.service, timeout=10) as client:
            while not leaving.is_set():
                body = requests[counted[number] % len(requests)].body
                try:
                    client.post("/v1/score", content=body, headers=JSON).raise_for_status()
                    counted[number] += 1
                except httpx.HTTPError as error:
                    lost.append(repr(error))
                    return

    def stop() -> None:
        try:
            compose("stop", "service")
        except Failed as failure:
            lost.append(str(failure))

    clients = [threading.Thread(target=send, args=(number,)) for number in range(len(counted))]
    stopping = threading.Thread(target=stop)
    for thread in clients:
        thread.start()
    time.sleep(1.0)
    stopping.start()
    eventually(lambda: not is_ready(compose), STOP_S, "/readyz did not stop returning 200")
    leaving.set()
    for thread in (*clients, stopping):
        thread.join(STOP_S)
    code = compose.inspect("service", "{{.State.ExitCode}}")
    if lost or code != "0":
        raise Failed(f"stopped with exit code {code}, {len(lost)} requests lost: {lost[:3]}")
    return f"docker compose stop: exit code 0, none of {sum(counted)} requests lost"


def is_ready(compose: Compose) -> bool:
    try:
        return httpx.get(f"{compose.service}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def eventually(holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
    end_s = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end_s:
            raise Failed(f"{otherwise} within {seconds:g} s")
        time.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks and return the exit code.

    Args:
        argv: The command that runs Compose. Default: `docker compose`.
    """
    compose = Compose(list(argv if argv is not None else sys.argv[1:]) or ["docker", "compose"])
    bundle = open_bundle(BUNDLE)
    seen, fresh = (prepare([bundle], {20: 60}, 2000, seed) for seed in (1, 2))
    checks: list[Callable[[], str]] = [
        lambda: becomes_healthy(compose),
        lambda: is_locked_down(compose),
        lambda: scores_with_redis(compose, seen),
        lambda: stores_an_event(compose),
        lambda: is_recorded(compose, seen),
        lambda: scores_without_redis(compose, fresh),
        lambda: stops_without_losing_any(compose, seen),
    ]
    try:
        with up(compose):
            for check in checks:
                print(f"ok: {check()}", flush=True)
    except (Failed, httpx.HTTPError) as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
