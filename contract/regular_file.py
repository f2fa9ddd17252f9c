"""Read a file that another user or program wrote: a named pipe must not block this process, nor a huge file fill it."""

import os
import stat
from pathlib import Path


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file.

    Args:
        path: The file, or a symbolic link to it.
        max_bytes: The largest size that is read.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a regular file, or it is larger. The message names the file.
    """
    # Without O_NONBLOCK, opening a named pipe waits for a writer. It has no effect on regular files.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes:,} bytes")
    return content
