"""Check the system's limits at startup, because a worker that reaches one of them later fails under load."""

import os
import resource
from pathlib import Path

from service.settings import PREFIX, HttpSettings, SettingsError

SPARE_DESCRIPTORS = 128  # Redis connections, the request log, refused connections, and files that libraries open.
DESCRIPTORS = Path("/proc/self/fd")


def raise_descriptor_limit() -> None:
    """Raise this process's soft limit on open files to the hard limit, which is the maximum that the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_descriptors(settings: HttpSettings, prefix: str = PREFIX) -> None:
    """Check that a worker may open enough files. Call this when the model is open.

    Raises:
        SettingsError: All connections, the model and its successor would need more open files than the limit allows.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or not DESCRIPTORS.is_dir():
        return
    others = 2 * len(os.listdir(DESCRIPTORS)) + SPARE_DESCRIPTORS  # Two models are open during a reload.
    if settings.max_connections + others > limit:
        raise SettingsError(
            f"{prefix}MAX_CONNECTIONS={settings.max_connections} needs {settings.max_connections + others} open files "
            f"in each worker, but the limit is {limit}. Raise the limit (ulimit -n, LimitNOFILE= in systemd, "
            f"--ulimit nofile= in Docker), or set {prefix}MAX_CONNECTIONS to at most {max(1, limit - others)}."
        )
