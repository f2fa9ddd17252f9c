"""The folder in which several processes keep their metrics.

This module must not import prometheus_client, which reads the folder's environment variable once, at import.
"""

import errno
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
SUMMED = ("counter", "histogram")  # prometheus_client's names for the files that grow with each new label.
SUMMED_BYTES = 256 * 1024
PROCESS_BYTES = 1536 * 1024  # All files of one worker. Half of this holds the latencies of the last minute.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# In memory, because writing a page back to disk would block a request that updates a metric on that page.
MEMORY = Path("/dev/shm")  # noqa: S108


class NoSpace(OSError):
    """There is not enough space for the files that the processes share. The message names the folder."""


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Create a folder for this server's metrics, and set the environment variable that names it.

    The folder is in memory if possible. It is deleted at the end of the block.
    """
    parent = MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    remove_abandoned_folders(parent)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent) as folder, (Path(folder) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ[FOLDER_VARIABLE] = folder
        yield Path(folder)


def remove_abandoned_folders(parent: Path) -> None:
    """Remove the folders of servers that were killed. No process holds the lock of such a folder."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < NEW_S:  # Its server may not have locked it yet.
                continue
            with (folder / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def check_space(folder: Path, workers: int) -> None:
    """Check at startup that the files of all workers will fit.

    Raises:
        NoSpace: There is too little space.
    """
    status = os.statvfs(folder)
    needed, free = (workers + 1) * PROCESS_BYTES, status.f_bavail * status.f_frsize
    if free < needed:
        raise no_space(folder, f"{workers} workers need {needed} bytes, but {free} are free")


def reserve(path: Path, size: int | None = None) -> None:
    """Allocate a file that will be memory-mapped.

    If the file were sparse, a write to a new page while the file system is full would kill the process with SIGBUS.

    Args:
        path: The file. It is created if it does not exist.
        size: The size in bytes, or None for the file's current size.

    Raises:
        NoSpace: There is too little space.
    """
    with path.open("ab") as file:
        size = file.tell() if size is None else size
        try:
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise no_space(path.parent, f"{path.name} needs {size} bytes") from error


def reserve_counts(folder: Path, process: str) -> None:
    """Allocate the files of a process that prometheus_client would otherwise create and let grow. Raises NoSpace."""
    for kind in SUMMED:
        reserve(folder / f"{kind}_{process}.db", SUMMED_BYTES)


def reserve_process_files(folder: Path) -> None:
    """Allocate the metrics files that prometheus_client has created in this process. Raises NoSpace."""
    for path in folder.glob(f"*_{os.getpid()}.db"):
        reserve(path)


def no_space(folder: Path, reason: str) -> NoSpace:
    """Return the exception for a lack of space. Its message explains how to fix this."""
    way_out = "Enlarge it (--shm-size in Docker, a larger emptyDir in Kubernetes), or lower CTR_WORKERS."
    return NoSpace(f"{folder.parent} is too small for the files that the workers share: {reason}. {way_out}")


def metrics_folder() -> Path | None:
    """Return the shared folder, or None if this process has no supervisor."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) if folder else None


def process_file(suffix: str) -> Path | None:
    """Return the path of this process's latency file in the shared folder, or None if there is no shared folder."""
    folder = metrics_folder()
    return folder / f"latency_{os.getpid()}{suffix}" if folder else None
