"""A running ctr-collect, events for it, and what it has stored."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from contract.score_ids import new_score_id
from contract.segments import finished_files
from tests.support.paths import ROOT
from tests.support.processes import a_free_port, eventually, get, without_settings

COLLECT = ("-m", "service.collect")


@dataclass(frozen=True)
class Collect:
    process: subprocess.Popen[str]
    url: str
    folder: Path

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.terminate()
        return self.process.wait(30)


def start_collect(folder: Path, port: int, **settings: str) -> subprocess.Popen[str]:
    """Start ctr-collect. settings: `CTR_COLLECT_*` variables. Variables from the environment are not passed on."""
    environment = without_settings() | {
        "CTR_COLLECT_FOLDER": str(folder),
        "CTR_COLLECT_PORT": str(port),
        "CTR_COLLECT_DRAIN_NOTICE_MS": "0",
        **settings,
    }
    return subprocess.Popen(
        [sys.executable, *COLLECT], cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


@contextmanager
def collecting(folder: Path, **settings: str) -> Iterator[Collect]:
    """Run ctr-collect until the context exits. For the settings, see `start_collect`."""
    port = a_free_port()
    with start_collect(folder, port, **settings) as process:
        server = Collect(process, f"http://127.0.0.1:{port}", folder)
        try:
            eventually(lambda: is_ready(server.url) or process.poll() is not None, "ready")
            yield server
        finally:
            process.kill()


def is_ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return get(f"{url}/readyz").status_code == 200
    return False


def an_event(event_id: str = "e-1", **members: Any) -> dict[str, Any]:
    """Return a valid click on an answer that was given two seconds ago."""
    now_s = time.time()
    event = {
        "event_id": event_id,
        "type": "click",
        "score_id": new_score_id(now_s - 2, logged=True),
        "candidate": 0,
        "time": datetime.fromtimestamp(now_s - 1, UTC).isoformat(),
    }
    return event | members


def stored_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the events in finished files. Fails if a line is not JSON."""
    return [json.loads(line) for path in finished_files(folder) for line in path.read_bytes().splitlines()]


def stored_ids(folder: Path) -> list[str]:
    return [event["event_id"] for event in stored_lines(folder)]
