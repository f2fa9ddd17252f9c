"""Outputs that appear whole or not at all."""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OWNER = "owner.lock"


@contextmanager
def new_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yields a temporary folder beside `path` and renames it to `path` when the block succeeds.

    marker: a file that every folder of this kind holds. An existing folder with it is replaced.
    What processes that were killed on the way left beside `path` is removed.

    Raises:
        ValueError: before the block runs, when `path` exists and is not such a folder.
    """
    check_replaceable(path, marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary, _owned(Path(temporary)):
        fresh = Path(temporary) / "new"
        fresh.mkdir()
        yield fresh
        if not (fresh / marker).is_file():
            raise AssertionError(f"the folder was written without its {marker}")
        check_replaceable(path, marker)
        if path.exists():
            path.rename(Path(temporary) / "old")
        fresh.rename(path)


@contextmanager
def _owned(temporary: Path) -> Iterator[None]:
    """A lock in it that ends with this process, however it ends."""
    with (temporary / OWNER).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_left_behind(path: Path) -> None:
    """What was killed between its two renames had moved the old folder aside: that one comes back first."""
    for owner in path.parent.glob(f".{glob.escape(path.name)}.*/{OWNER}"):
        with suppress(OSError), owner.open("rb") as file:  # of a living process, or gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (old := owner.parent / "old").is_dir() and not path.exists():
                old.rename(path)
            shutil.rmtree(owner.parent, ignore_errors=True)


def check_replaceable(path: Path, marker: str) -> None:
    """Raises ValueError when writing to `path` is not possible, or would destroy what was not written here."""
    if path.is_symlink() or (path.exists() and not (path / marker).is_file() and not _is_empty_folder(path)):
        raise ValueError(f"{path} exists and holds no {marker}: name another folder, or remove it yourself")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written below {there}: name another folder")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def write_whole(path: Path, content: bytes) -> None:
    """The file has the content, or what it had before."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk's error has none
        raise
    finally:
        aside.unlink(missing_ok=True)
