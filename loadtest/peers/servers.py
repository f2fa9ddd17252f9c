"""The servers that ours is compared with: each in an environment of its own, all with the same model and threads."""

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

from loadtest.servers import cpu_s_of, pss_mib

HERE = Path(__file__).parent
READY_S = 120.0
END_S = 10.0
MARK = "PEER_RUN"  # an environment variable that every process of one run inherits, and nobody else has
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
    """It could not be installed or did not answer. Its own words are in the log that the message names."""


@dataclass(frozen=True)
class Peer:
    """name: in tables. command: what comes after the environment's bin folder. settings: the
    environment variables with which its documentation tunes it, and PEER_GRAPH where that is not plain.onnx.
    """

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> str:
        """Its folder's name. Peers that are one file share it."""
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
    """mark: what all of its processes have in their environment."""

    url: str
    mark: str

    def cpu_s(self) -> float:
        """Of all its processes that live, since each started."""
        return sum(cpu_s_of(pid) for pid in _marked(self.mark))

    def memory_mib(self) -> float:
        """Pages that several share count once."""
        return sum(pss_mib(pid) for pid in _marked(self.mark))


def ensure_venv(peer: Peer, root: Path) -> Path:
    """root/<environment>/ with the peer's requirements: made when it is not there, or has others.

    Raises:
        PeerFailed: when pip does.
    """
    folder = root / peer.environment
    stamp, wanted = folder / "requirements.txt", "\n".join(peer.requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *peer.requirements]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603
            raise PeerFailed(f"{peer.name}: {' '.join(command)} failed: its words are above")
    stamp.write_text(wanted)
    return folder


@contextmanager
def peer_serving(
    peer: Peer, venv: Path, folder: Path, port: int, workers: int, log: Path, body: bytes
) -> Iterator[Running]:
    """Ready when entered: it has answered `body`, a score request. Nothing of it is left when this ends.

    Raises:
        PeerFailed: when it ends, or has not answered within READY_S.
    """
    settings = {"PEER_FOLDER": str(folder), "PEER_PORT": str(port), "PEER_WORKERS": str(workers)}
    settings |= {**peer.settings, "PYTHONPATH": str(HERE), MARK: uuid.uuid4().hex}
    command = [str(venv / "bin" / peer.command[0]), *peer.command[1:]]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=HERE, env=_clean() | settings, stdout=file, stderr=file, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, f"{url}/v1/score", body, log)
        yield Running(url, settings[MARK])
    finally:
        _end(process, settings[MARK])


def _clean() -> dict[str, str]:
    """Ours, without what would lead Python back into our own libraries, and with one thread for each library."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return ours | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, body: bytes, log: Path) -> None:
    end_s = time.monotonic() + READY_S
    while time.monotonic() < end_s and process.poll() is None:
        if _answers(url, body):
            return
        time.sleep(0.1)
    raise PeerFailed(f"no answer from {url} within {READY_S:g} s:\n{log.read_text(errors='replace')[-2000:]}")


def _answers(url: str, body: bytes) -> bool:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  # our own server
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:  # nobody listens yet, or it answers that it is not ready
        return False


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """SIGTERM to the first process, which knows how to end its own; then SIGKILL to whatever is left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Ray's processes are in groups of their own, and some start others while they are ended.
    while left := _marked(mark):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    process.wait(END_S)


def _marked(mark: str) -> list[int]:
    """The living processes that were started with this mark in their environment. Linux only."""
    wanted = f"{MARK}={mark}".encode()
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and wanted in _environ(entry)]


def _environ(entry: Path) -> list[bytes]:
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return []
