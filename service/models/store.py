"""ctr-store: versions of bundles side by side, and which one is current. A server started with --store follows it.

STORE/versions/<version>/   a bundle
STORE/current               which one is served, and which ones were before
"""

import argparse
import fcntl
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from contract.bundle import BundleError, Manifest, open_bundle

VERSIONS = "versions"
CURRENT = "current"
LOCK = "lock"
UNFINISHED = ".unfinished-"
MOST_PREVIOUS = 100
VERSION = re.compile(r"[0-9a-f]{64}")
SHORTEST_PREFIX = 6


class StoreError(ValueError):
    """A store that cannot be used so. One sentence, with the way out."""


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """previous: the newest first."""

    version: str
    previous: list[str] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: done. 2: not, and a sentence says why."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (StoreError, BundleError) as error:
        print(f"ctr-store: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"ctr-store: {error.filename or arguments.store}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def current_bundle(store: Path) -> Path:
    """The folder of the current version.

    Raises:
        StoreError: when there is no store, no pointer, or nothing where it points to.
    """
    pointer = read_pointer(store)
    if pointer is None:
        raise StoreError(f"{store} has no current version: ctr-store add {store} BUNDLE --activate")
    folder = store / VERSIONS / pointer.version
    if not folder.is_dir() or folder.is_symlink():
        raise StoreError(f"{store}: the current version {pointer.version} is not there: activate another one")
    return folder


def read_pointer(store: Path) -> Pointer | None:
    """None where no version was ever activated. Raises StoreError when it is garbled."""
    path = store / CURRENT
    try:
        pointer = msgspec.json.decode(path.read_bytes(), type=Pointer)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read ({error}): activate a version again") from error
    # A version is a name and no path: a pointer never leaves the store.
    for version in (pointer.version, *pointer.previous):
        if not VERSION.fullmatch(version):
            raise StoreError(f"{path} names {version[:100]!r}, which is no version: activate one again")
    return pointer


def add(store: Path, bundle: Path) -> tuple[Manifest, bool]:
    """Verifies a bundle, copies it, and verifies the copy. False: it is there already, whole.

    Raises:
        StoreError: when it cannot be copied, or changes meanwhile.
        BundleError: when it is none.
    """
    manifest = open_bundle(bundle).manifest
    (store / VERSIONS).mkdir(parents=True, exist_ok=True)
    with _locked(store):
        target = store / VERSIONS / manifest.version
        if _is_whole(target):
            return manifest, False
        with _aside(store) as aside:
            copy = aside / manifest.version
            _copy(bundle, copy)
            if open_bundle(copy).manifest.version != manifest.version:
                raise StoreError(f"{bundle} was changed while it was copied: add it again")
            _sync(copy)
            if os.path.lexists(target):
                target.rename(aside / "broken")
            copy.rename(target)
        return manifest, True


def _copy(bundle: Path, folder: Path) -> None:
    try:
        shutil.copytree(bundle, folder)
    except shutil.Error as error:
        _, _, reason = error.args[0][0]
        raise StoreError(f"{bundle} cannot be copied into the store: {reason}") from error
    # Whoever serves it may be another user than the one who adds it.
    folder.chmod(0o755)


@contextmanager
def _aside(store: Path) -> Iterator[Path]:
    """A folder in the store for what has no name yet, or none any more."""
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=store) as folder:
        yield Path(folder)


def _is_whole(version: Path) -> bool:
    try:
        return not version.is_symlink() and open_bundle(version).manifest.version == version.name
    except BundleError:
        return False


def _sync(folder: Path) -> None:
    """Onto the disk, before it gets the name under which nobody looks into it any more."""
    for path in (*folder.rglob("*"), folder):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def remove(store: Path, version: str) -> str:
    """Takes a version out of the store; a prefix of it is enough. The whole version.

    Raises:
        StoreError: for the current one, and as activate().
    """
    with _locked(store):
        whole = _find(store, version)
        pointer = _pointer_or_none(store)
        if pointer is not None and pointer.version == whole:
            raise StoreError(f"{whole} is current: activate another version first, or ctr-store rollback {store}")
        with _aside(store) as aside:
            (store / VERSIONS / whole).rename(aside / whole)
        return whole


def activate(store: Path, version: str) -> str:
    """Makes a version current; a prefix of it is enough. The whole version."""
    with _locked(store):
        whole = _find(store, version)
        pointer = _pointer_or_none(store)
        if pointer is None or pointer.version != whole:
            previous = [] if pointer is None else [pointer.version, *pointer.previous]
            _write(store, Pointer(whole, previous[:MOST_PREVIOUS]))
        return whole


def rollback(store: Path) -> str:
    """Makes the newest previous version current that is still there; once more: the one before."""
    with _locked(store):
        pointer = read_pointer(store)
        previous = [] if pointer is None else pointer.previous
        there = _versions(store)
        left = next((index for index, version in enumerate(previous) if version in there), None)
        if left is None:
            raise StoreError(f"{store} has no previous version to go back to: ctr-store list {store}")
        _write(store, Pointer(previous[left], previous[left + 1 :]))
        return previous[left]


def _find(store: Path, prefix: str) -> str:
    found = [version for version in _versions(store) if version.startswith(prefix)]
    if len(prefix) < SHORTEST_PREFIX:
        raise StoreError(f"{prefix!r} is too short for a version: give {SHORTEST_PREFIX} characters or more")
    if len(found) != 1:
        what = f"{len(found)} versions begin" if found else "no version begins"
        raise StoreError(f"in {store} {what} with {prefix[:100]!r}: ctr-store list {store}")
    return found[0]


def _versions(store: Path) -> list[str]:
    folder = store / VERSIONS
    paths = folder.iterdir() if folder.is_dir() else ()
    names = [path.name for path in paths if path.is_dir() and not path.is_symlink()]  # as current_bundle()
    return sorted(name for name in names if VERSION.fullmatch(name))


def _pointer_or_none(store: Path) -> Pointer | None:
    """To activate a version is the way out of a garbled pointer."""
    try:
        return read_pointer(store)
    except StoreError:
        return None


def _write(store: Path, pointer: Pointer) -> None:
    with _aside(store) as aside:
        path = aside / CURRENT
        path.write_bytes(msgspec.json.format(msgspec.json.encode(pointer)) + b"\n")
        path.chmod(0o644)
        _sync(aside)
        path.rename(store / CURRENT)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """One ctr-store at a time. What a killed one left goes first. Raises StoreError when there is no store."""
    _check_is_store(store)
    with (store / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for unfinished in store.glob(f"{UNFINISHED}*"):
            if unfinished.is_dir() and not unfinished.is_symlink():
                shutil.rmtree(unfinished)
            else:
                unfinished.unlink()
        yield


def _check_is_store(store: Path) -> None:
    if not (store / VERSIONS).is_dir():
        raise StoreError(f"there is no store at {store}: ctr-store add {store} BUNDLE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ctr-store", description="Versions of bundles, and which one is served.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("add", _add, "verify a bundle and copy it into the store"),
        ("list", _list, "the versions, and which one is current"),
        ("activate", _activate, "make a version current: a server that follows the store loads it"),
        ("remove", _remove, "delete a version that is not current"),
        ("rollback", _rollback, "make the version current that was before"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("store", type=Path)
        command.set_defaults(run=run)
        if name == "add":
            command.add_argument("bundle", type=Path)
            command.add_argument("--activate", action="store_true", help="and make it current")
        if name in ("activate", "remove"):
            command.add_argument("version", help="all of it, or how it begins")
    return parser


def _add(arguments: argparse.Namespace) -> None:
    manifest, is_new = add(arguments.store, arguments.bundle)
    print(f"{'added' if is_new else 'already there:'} {manifest.name} {manifest.version}")
    if arguments.activate:
        print(f"current: {activate(arguments.store, manifest.version)}")


def _list(arguments: argparse.Namespace) -> None:
    _check_is_store(arguments.store)
    pointer = _pointer_or_none(arguments.store)
    for version in _versions(arguments.store):
        try:
            manifest = open_bundle(arguments.store / VERSIONS / version, verify=False).manifest
            what = f"{manifest.created}  {manifest.name}"
        except BundleError as error:
            what = f"damaged: {error}"
        print(f"{version}  {what}{_role(version, pointer)}")
    read_pointer(arguments.store)  # says what is wrong with it, when all that one can activate has been shown


def _role(version: str, pointer: Pointer | None) -> str:
    if pointer is None or version not in (pointer.version, *pointer.previous):
        return ""
    return "  current" if version == pointer.version else f"  previous {1 + pointer.previous.index(version)}"


def _activate(arguments: argparse.Namespace) -> None:
    print(f"current: {activate(arguments.store, arguments.version)}")


def _remove(arguments: argparse.Namespace) -> None:
    print(f"removed: {remove(arguments.store, arguments.version)}")


def _rollback(arguments: argparse.Namespace) -> None:
    print(f"current: {rollback(arguments.store)}")


if __name__ == "__main__":
    sys.exit(main())
