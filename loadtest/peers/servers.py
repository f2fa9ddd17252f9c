"""Start the servers that ours is compared with. Each has its own environment; all have the same model and threads."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.servers import cpu_seconds, pss_mib

HERE = Path(__file__).parent
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
MARK = "PEER_RUN"  # an environment variable that all processes of a run inherit, and no other process has
ENGINE = ("onnxruntime==1.32.0", "numpy==2.4.6")
BENTOML = {"BENTOML_DO_NOT_TRACK": "True"}
RAY = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
}
FASTAPI = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", *ENGINE)


class PeerFailed(RuntimeError):
    """A server could not be installed, or did not answer. The message has its error, or the end of its log."""


@dataclass(frozen=True)
class Peer:
    """A server that ours is compared with.

    Args:
        name: Shown in tables.
        requirements: For pip, pinned.
        command: A program in the environment's bin folder, and its arguments.
        settings: Environment variables that its documentation recommends, and PEER_GRAPH if it is not plain.onnx.
    """

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> str:
        """The name of its environment's folder. Servers of the same file share it."""
        return Path(self.command[-1]).stem


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("plain FastAPI", FASTAPI, ("python", "plain_fastapi.py")),
        Peer(
            "plain FastAPI, our graph", FASTAPI, ("python", "plain_fastapi.py"), settings={"PEER_GRAPH": "model.onnx"}
        ),
        Peer("mosec", ("mosec==0.9.8", *ENGINE), ("python", "mosec_server.py")),
        Peer("LitServe", ("litserve==0.2.19", *ENGINE), ("python", "litserve_server.py")),
        Peer("BentoML", ("bentoml==1.4.40", *ENGINE), ("python", "bentoml_service.py"), settings=BENTOML),
        Peer("Ray Serve", ("ray[serve]==2.60.0", *ENGINE), ("python", "ray_server.py"), settings=RAY),
    )
}


@dataclass(frozen=True)
class Running:
    """A running server. mark: the value of MARK in the environment of all its processes."""

    url: str
    mark: str

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its live processes since each started."""
        return sum(map(cpu_seconds, marked_processes(self.mark)))

    def memory_mib(self) -> float:
        """Return the memory of all its processes. Pages that several share count once."""
        return sum(map(pss_mib, marked_processes(self.mark)))


def ensure_venv(peer: Peer, root: Path) -> Path:
    """Return root/<environment>, and install the server's requirements there first if they are not.

    Raises:
        PeerFailed: Installing failed.
    """
    folder = root / peer.environment
    stamp, wanted = folder / "requirements.txt", "\n".join(peer.requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.requirements]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603
            raise PeerFailed(f"{peer.name}: {' '.join(command)} failed: its error is above")
    stamp.write_text(wanted)
    return folder


@contextmanager
def peer_serving(
    peer: Peer, venv: Path, folder: Path, port: int, workers: int, log: Path, body: bytes
) -> Iterator[Running]:
    """Run a server, and end all of its processes on exit.

    Args:
        venv: Its environment.
        folder: The model's files, as `write_plain` writes them.
        log: Gets its output.
        body: A request for scores. The context is entered when the server has answered it.

    Raises:
        PeerFailed: It ended, or did not answer within START_TIMEOUT_S.
    """
    # Without our Python's variables, which would lead it to our libraries, and with one thread for each library.
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    settings |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    settings |= {"PEER_FOLDER": str(folder), "PEER_PORT": str(port), "PEER_WORKERS": str(workers)}
    settings |= {**peer.settings, "PYTHONPATH": str(HERE), MARK: uuid.uuid4().hex}
    command = [str(venv / "bin" / peer.command[0]), *peer.command[1:]]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=HERE, env=settings, stdout=file, stderr=file, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for_answer(process, f"{url}/v1/score", body, log)
        yield Running(url, settings[MARK])
    finally:
        end_all(process, settings[MARK])


def wait_for_answer(process: "subprocess.Popen[bytes]", url: str, body: bytes, log: Path) -> None:
    """Post `body` until the answer is 200.

    Raises:
        PeerFailed: The process ended, or there was no such answer within START_TIMEOUT_S.
    """
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  # our own server
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                if answer.status == 200:
                    return
        except OSError:  # nothing listens on the port yet, or the server answers that it is not ready
            pass
        time.sleep(0.1)
    problem = f"no answer from {url} within {START_TIMEOUT_S:g} s"
    raise PeerFailed(f"{problem}. The end of the log:\n{log.read_text(errors='replace')[-2000:]}")


def end_all(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """Send SIGTERM to the first process, which ends its own children, and then SIGKILL to what still runs."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Ray's processes have their own groups, and some start others while they are being ended.
    while left := marked_processes(mark):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    process.wait(STOP_TIMEOUT_S)


def marked_processes(mark: str) -> list[int]:
    """Return the pids of live processes that were started with this mark in their environment. Linux only."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended, or belongs to another user
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
