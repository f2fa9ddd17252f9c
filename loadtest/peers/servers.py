"""Start the servers that ours is compared with.

Each has its own environment. All use the same model and the same number of threads.
"""

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
MARK = "PEER_RUN"  # environment variable that all processes of a run inherit, and that no other process has
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
    """A server could not be installed, or did not answer. The message includes the end of its log, if there is one."""


@dataclass(frozen=True)
class Peer:
    """A server that ours is compared with.

    Args:
        name: Shown in tables.
        requirements: Pinned requirements for pip.
        command: A program in the environment's bin folder, and its arguments.
        settings: Environment variables recommended by the server's documentation, and PEER_GRAPH if the graph is not
            plain.onnx.
    """

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> str:
        """The name of the folder with the server's environment. Servers that run the same file share this folder."""
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
        """Return the CPU seconds of all live processes of the server since each started."""
        return sum(map(cpu_seconds, marked_processes(self.mark)))

    def memory_mib(self) -> float:
        """Return the total memory of the server's processes. Shared pages count once."""
        return sum(map(pss_mib, marked_processes(self.mark)))


def ensure_venv(peer: Peer, root: Path) -> Path:
    """Return root/<environment>, after installing the server's requirements there if necessary.

    Raises:
        PeerFailed: The installation failed.
    """
    folder = root / peer.environment
    stamp, wanted = folder / "requirements.txt", "\n".join(peer.requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.requirements]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603
            raise PeerFailed(f"{peer.name}: {' '.join(command)} failed; see its error above")
    stamp.write_text(wanted)
    return folder


@contextmanager
def peer_serving(
    peer: Peer, venv: Path, folder: Path, port: int, workers: int, log: Path, body: bytes
) -> Iterator[Running]:
    """Run a server, and stop all of its processes on exit.

    Args:
        venv: The server's environment.
        folder: The model's files, as written by `write_plain`.
        log: The file to which the server's output is written.
        body: A scoring request. The context is entered when the server has answered it.

    Raises:
        PeerFailed: The server exited, or did not answer within START_TIMEOUT_S.
    """
    # Remove this interpreter's variables, which would make the server import our libraries. Give each of the server's
    # libraries one thread.
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
        PeerFailed: The process exited, or did not answer with 200 within START_TIMEOUT_S.
    """
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  # our own server
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                if answer.status == 200:
                    return
        except OSError:  # nothing listens on the port yet, or the server is not ready
            pass
        time.sleep(0.1)
    problem = f"no answer from {url} within {START_TIMEOUT_S:g} s"
    raise PeerFailed(f"{problem}. The log ends with:\n{log.read_text(errors='replace')[-2000:]}")


def end_all(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """Send SIGTERM to the first process, which stops its children, and then SIGKILL to all that are still alive."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Ray's processes have their own process groups, and some start other processes while they are being stopped.
    while left := marked_processes(mark):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    process.wait(STOP_TIMEOUT_S)


def marked_processes(mark: str) -> list[int]:
    """Return the pids of the live processes that have this mark in their environment. Linux only."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # the process has exited, or belongs to another user
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
