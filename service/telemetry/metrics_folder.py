"""Where several processes keep their metrics. prometheus_client is not imported here: it looks for the folder then."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "ctr-metrics-"
LOCK = "lock"
NEW_S = 60.0
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# A page that is being written to a disk would make a request wait.
MEMORY = Path("/dev/shm")  # noqa: S108


@contextmanager
def shared_folder() -> Iterator[Path]:
    """An own folder, in memory where it can be, named in the environment; gone at the end."""
    where = MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    _clear(where)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=where) as folder, (Path(folder) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ[FOLDER_VARIABLE] = folder
        yield Path(folder)


def _clear(where: Path) -> None:
    """What servers left that had no time to: nobody holds their lock."""
    for folder in where.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < NEW_S:  # its server may not have locked it yet
                continue
            with (folder / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def own_file(suffix: str) -> Path | None:
    """For this process's own figures; None: only this process reads them."""
    folder = metrics_folder()
    return folder / f"latency_{os.getpid()}{suffix}" if folder else None


def metrics_folder() -> Path | None:
    """None: this process has no supervisor."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) if folder else None
