"""How many events ctr-collect stores per second on one core, in bodies of 100 and one by one."""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import uvloop

from benchmarks import RESULTS
from contract.score_ids import new_score_id
from loadtest.report import Table, write_report

TARGET = 10_000
START_S = 30.0
WARM_UP_S = 1.0
BODIES = 64  # different bodies of each connection


@dataclass(frozen=True)
class Case:
    """A way of sending events: how many in a body, over how many connections at the same time."""

    title: str
    events: int
    connections: int


CASES = (
    Case("bodies of 100 events, 1 connection", 100, 1),
    Case("bodies of 100 events, 8 connections", 100, 8),
    Case("single events, 1 connection", 1, 1),
    Case("single events, 64 connections", 1, 64),
)


@dataclass(frozen=True)
class Measured:
    """What was measured in one case. Times are in µs, or in ms where the name says so."""

    events_per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    group_requests: float
    fsync_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.collect", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each case (default: 20)")
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure; default: a temporary one")
    arguments = parser.parse_args(argv)
    server_cpu, client_cpu = two_cpus()
    os.sched_setaffinity(0, {client_cpu})
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, running(Path(folder), server_cpu) as server:
            measured = uvloop.run(measure(case, server, arguments.seconds))
        rows.append(
            [
                case.title,
                f"{measured.events_per_s:,.0f}",
                f"{measured.cpu_us:.1f}",
                f"{measured.p50_ms:.1f}",
                f"{measured.p99_ms:.1f}",
                f"{measured.group_requests:.1f}",
                f"{measured.fsync_ms:.2f}",
                f"{TARGET:,}" if case.events > 1 and case.connections > 1 else "",
            ]
        )
    header = ["", "events/s", "CPU µs/event", "p50 ms", "p99 ms", "requests/fsync", "fsync ms", "target events/s"]
    text = (
        f"One ctr-collect process on one core, the client on another one. Each case runs for {arguments.seconds:g} s. "
        "A connection sends its next body when the previous one has been answered with 202, so its events are on the "
        "disk. CPU time is user and system time of the whole process; latencies are the client's."
    )
    command = f"python -m benchmarks.collect --seconds {arguments.seconds:g}"
    libraries = ["fastapi", "msgspec", "uvicorn", "uvloop"]
    write_report(RESULTS / "collect.md", "Collecting events", text, [Table("", header, rows)], libraries, command)
    return 0


def two_cpus() -> tuple[int, int]:
    """Return a CPU for the server and another one for the client. They are the same if there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[-1]


@contextmanager
def running(folder: Path, cpu: int) -> Iterator[tuple[int, int]]:
    """Run ctr-collect on one CPU, and yield its process id and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("CTR_")}
    environment |= {"CTR_COLLECT_FOLDER": str(folder), "CTR_COLLECT_PORT": str(port)}
    command = [sys.executable, "-m", "service.collect"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            os.sched_setaffinity(process.pid, {cpu})
            end_s = time.monotonic() + START_S
            while not is_ready(port):
                if time.monotonic() > end_s:
                    raise RuntimeError(f"ctr-collect was not ready within {START_S:g} s")
                time.sleep(0.05)
            for thread in psutil.Process(process.pid).threads():
                os.sched_setaffinity(thread.id, {cpu})
            yield process.pid, port
        finally:
            process.terminate()


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


async def measure(case: Case, server: tuple[int, int], seconds: float) -> Measured:
    """Send events over all connections, and return the rates after a warm-up."""
    pid, port = server
    process = psutil.Process(pid)
    latencies_s: list[float] = []
    end_s = time.perf_counter() + WARM_UP_S + seconds
    sending = [asyncio.create_task(send(case, number, port, end_s, latencies_s)) for number in range(case.connections)]
    await asyncio.sleep(WARM_UP_S)
    latencies_s.clear()
    start_s, cpu_before, before = time.perf_counter(), process.cpu_times(), await counters(port)
    await asyncio.gather(*sending)
    took_s, cpu_after, after = time.perf_counter() - start_s, process.cpu_times(), await counters(port)
    events = len(latencies_s) * case.events
    cpu_s = cpu_after.user + cpu_after.system - cpu_before.user - cpu_before.system
    groups = after["ctr_collect_group_requests_count"] - before["ctr_collect_group_requests_count"]
    fsync_s = after["ctr_collect_fsync_seconds_sum"] - before["ctr_collect_fsync_seconds_sum"]
    ordered = sorted(latencies_s)
    return Measured(
        events_per_s=events / took_s,
        cpu_us=cpu_s / events * 1e6,
        p50_ms=ordered[len(ordered) // 2] * 1e3,
        p99_ms=ordered[len(ordered) * 99 // 100] * 1e3,
        group_requests=(after["ctr_collect_group_requests_sum"] - before["ctr_collect_group_requests_sum"]) / groups,
        fsync_ms=fsync_s / groups * 1e3,
    )


async def send(case: Case, number: int, port: int, end_s: float, latencies_s: list[float]) -> None:
    """Send bodies over one connection until `end_s`, and record how long each answer takes."""
    requests = [request(case.events, f"{number}-{body}") for body in range(BODIES)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count = 0
    while (sent_s := time.perf_counter()) < end_s:
        writer.write(requests[count % BODIES])
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 202 " not in head:
            raise RuntimeError(f"a body was not stored: {head.decode()}")
        length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        latencies_s.append(time.perf_counter() - sent_s)
        count += 1
    writer.close()


def request(events: int, name: str) -> bytes:
    """Return a request with impressions and clicks."""
    now_s = time.time()
    body = json.dumps(
        [
            {
                "event_id": f"event-{name}-{position:08}",
                "type": "click" if position % 50 == 0 else "impression",
                "score_id": new_score_id(now_s - 5, logged=True),
                "candidate": position % 100,
                "time": datetime.fromtimestamp(now_s - 1, UTC).isoformat(timespec="milliseconds"),
                "position": position % 10,
            }
            for position in range(events)
        ]
    ).encode()
    head = (
        f"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def counters(port: int) -> dict[str, float]:
    """Return the series without labels."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    lines = (line.split() for line in text.splitlines() if not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, value in lines}


if __name__ == "__main__":
    sys.exit(main())
