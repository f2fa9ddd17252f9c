"""Writing output folders and files atomically."""

import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "owner.lock"


@contextmanager
def new_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield a temporary folder next to `path`, and rename it to `path` if the block succeeds.

    An existing folder of the same kind is replaced. Temporary folders that killed processes left behind are removed.

    Args:
        path: The folder to write.
        marker: The name of a file that every folder of this kind contains.

    Raises:
        ValueError: Before the block runs, if `path` exists and is not a folder of this kind.
    """
    check_replaceable(path, marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with (
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary,
        (Path(temporary) / LOCK).open("wb") as lock,
    ):
        # The lock tells remove_leftovers() that the folder is in use. The kernel releases it when this process exits,
        # even if the process is killed.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new = Path(temporary) / "new"
        new.mkdir()
        yield new
        if not (new / marker).is_file():
            raise AssertionError(f"the folder was written without its {marker}")
        check_replaceable(path, marker)
        if path.exists():
            path.rename(Path(temporary) / "old")
        new.rename(path)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, in its own folder next to `path`, and rename it to `path` on success.

    An existing file is replaced. Temporary folders that killed processes left behind are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    with (
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary,
        (Path(temporary) / LOCK).open("wb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new = Path(temporary) / "new"
        yield new
        new.rename(path)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary folders that killed processes left next to `path`.

    If a process was killed between its two renames, it had already moved the old folder away. That folder is moved back
    first.
    """
    for lock in path.parent.glob(f".{glob.escape(path.name)}.*/{LOCK}"):
        # OSError: the folder belongs to a running process, or its process has just removed it.
        with suppress(OSError), lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (old := lock.parent / "old").is_dir() and not path.exists():
                old.rename(path)
            shutil.rmtree(lock.parent, ignore_errors=True)


def check_replaceable(path: Path, marker: str) -> None:
    """Check that a folder can be written to `path` without overwriting anything else.

    Args:
        path: The folder to write.
        marker: The name of a file that every folder of this kind contains.

    Raises:
        ValueError: If `path` is a symbolic link, exists but is neither empty nor of this kind, or cannot be created.
    """
    is_empty_folder = path.is_dir() and not any(path.iterdir())
    if path.is_symlink() or (path.exists() and not (path / marker).is_file() and not is_empty_folder):
        raise ValueError(f"{path} exists and has no {marker}. Choose another folder, or remove this one yourself.")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be created, because {parent} is not a writable folder. Choose another folder.")


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file's content atomically. If writing fails, the old content is kept.

    Raises:
        OSError: If the file cannot be written. The error names the file.
    """
    write_all({path: content})


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Replace the content of files, each one atomically. If writing fails, all of them keep their old content.

    The files are renamed in the given order, after all of them were written. If the process is killed in between, the
    last ones still have their old content.

    Raises:
        OSError: If a file cannot be written. The error names the file.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    path = next(iter(contents))
    for target in contents:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    try:
        for path, content in contents.items():
            temporary[path].write_bytes(content)
        for path, scratch in temporary.items():
            scratch.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # if the disk is full, the error does not name the file
        raise
    finally:
        for scratch in temporary.values():
            scratch.unlink(missing_ok=True)
