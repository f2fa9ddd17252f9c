"""The folder in which several processes keep their metrics.

This module must not import prometheus_client, which reads the folder's environment variable once, at import.
"""

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
# In memory, because writing a page back to disk would block a request that updates a metric on that page.
MEMORY = Path("/dev/shm")  # noqa: S108


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


def metrics_folder() -> Path | None:
    """Return the shared folder, or None if this process has no supervisor."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) if folder else None


def process_file(suffix: str) -> Path | None:
    """Return the path of this process's latency file in the shared folder, or None if there is no shared folder."""
    folder = metrics_folder()
    return folder / f"latency_{os.getpid()}{suffix}" if folder else None
