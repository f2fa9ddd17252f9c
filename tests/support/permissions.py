"""Run a block as a user with few permissions, because file modes do not apply to root."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def another_user() -> Iterator[None]:
    """Run the block as NOBODY if this process runs as root. For other users, file modes apply anyway."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def public_folder() -> Iterator[Path]:
    """Yield a folder that every user may read. The temporary folders of pytest are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path in (folder, *folder.glob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)
