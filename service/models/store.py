"""ctr-store: keep several versions of a bundle, and choose which one is served.

A server that is started with --store always serves the current version.

STORE/versions/<version>/    a bundle
STORE/current                the current version, and the previously current ones
STORE/gates/<version>.json   the report of ctr-gate with which a version was accepted
STORE/settings.json          whether new versions need such a report
"""

import argparse
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from contract.bundle import BundleError, Manifest, open_bundle
from contract.golden import TOLERATED
from contract.store import (
    CURRENT,
    VERSION,
    VERSIONS,
    Pointer,
    StoreError,
    read_pointer,
    readable_pointer,
    unreadable,
)
from contract.system_errors import explain_denied
from service.models.store_gate import (
    HOW_TO_SKIP,
    SETTINGS,
    Settings,
    accepted_report,
    damaged_pointer,
    describe_evidence,
    evidence_file,
    read_store_settings,
    reason_to_refuse,
    was_current,
)

LOCK = "lock"
UNFINISHED = ".unfinished-"
MAX_PREVIOUS = 100
HOW_TO_SKIP_CHECK = "To activate it in spite of this, add --force"
MIN_PREFIX_CHARS = 6
SHORT = 12  # characters of a version in a message
COMMANDS = {
    "add": "verify a bundle and copy it into the store",
    "list": "list the versions, and show which one is current",
    "activate": "make a version current; a server that follows the store loads it",
    "remove": "delete a version that is not current",
    "rollback": "make the previously current version current again",
    "require-gate": "set whether new versions need a report of ctr-gate",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 on success, or 2 after an error message."""
    parser = argparse.ArgumentParser(
        "ctr-store", description="Keep several versions of a bundle, and choose which one is served."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("store", type=Path, help="the store's folder")
        if name == "add":
            command.add_argument("bundle", type=Path, help="the bundle's folder")
            command.add_argument("--activate", action="store_true", help="also make the version current")
            command.add_argument(
                "--gate",
                type=Path,
                metavar="REPORT.json",
                help="add the bundle only if it passed against the current version in this report of ctr-gate",
            )
            command.add_argument(
                "--force",
                action="store_true",
                help="add the bundle despite its warnings, wrong golden answers, or the gate",
            )
        if name in ("activate", "remove"):
            command.add_argument("version", help="the version, or its first characters")
        if name == "activate":
            command.add_argument("--force", action="store_true", help="activate a version that did not pass the gate")
        if name == "require-gate":
            command.add_argument("setting", choices=("on", "off"), help="on: new versions need a report; default: off")
    arguments = parser.parse_args(argv)
    try:
        run(arguments)
    except (StoreError, BundleError) as error:
        print(f"ctr-store: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        print(f"ctr-store: {explain_denied(Path(error.filename or arguments.store))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"ctr-store: {error.filename or arguments.store}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Run one command and print its result."""
    store: Path = arguments.store
    match arguments.command:
        case "add":
            if arguments.activate and not arguments.force:
                check_answers(arguments.bundle)
            manifest, is_new = add(store, arguments.bundle, arguments.force, arguments.gate)
            print(f"{'added' if is_new else 'already there:'} {manifest.name} {manifest.version}")
            if arguments.activate:
                print(f"current: {activate(store, manifest.version, arguments.force)}")
        case "list":
            print_versions(store)
        case "activate":
            print(f"current: {activate(store, arguments.version, arguments.force)}")
        case "remove":
            print(f"removed: {remove(store, arguments.version)}")
        case "rollback":
            print(f"current: {rollback(store)}")
        case "require-gate":
            require_gate(store, arguments.setting == "on")
            print(f"require-gate: {arguments.setting}")


def print_versions(store: Path) -> None:
    """Print a line for each version: when it was exported, its name, and whether it is or was current."""
    check_is_store(store)
    pointer = readable_pointer(store)
    for version in stored_versions(store):
        try:
            manifest = open_bundle(store / VERSIONS / version, verify=False).manifest
            text = f"{manifest.created}  {manifest.name}"
        except BundleError as error:
            text = f"damaged: {error}"
        if pointer is not None and version == pointer.version:
            text += "  current"
        elif pointer is not None and version in pointer.previous:
            text += f"  previous {1 + pointer.previous.index(version)}"
        print(f"{version}  {text}{describe_evidence(store, version)}")
    read_pointer(store)  # Raises if the pointer is damaged, but only after all versions have been printed.


def current_bundle(store: Path) -> Path:
    """Return the folder of the current version.

    Raises:
        StoreError: The store, its pointer, or the version that the pointer names does not exist.
    """
    pointer = read_pointer(store)
    if pointer is None:
        raise StoreError(f"{store} has no current version: run ctr-store add {store} BUNDLE --activate")
    if not has_version(store, pointer.version):
        raise StoreError(f"{store}: the current version {pointer.version} is missing: activate another version")
    return store / VERSIONS / pointer.version


def servable_bundles(store: Path) -> tuple[str, list[Path]]:
    """Return the current version, and the folders that a starting server tries: the current one, then previous ones.

    Versions that are missing from the store are left out. A version that was current several times is tried once.

    Raises:
        StoreError: The store or its pointer does not exist, or all of these versions are missing.
    """
    pointer = read_pointer(store)
    versions = [] if pointer is None else list(dict.fromkeys((pointer.version, *pointer.previous)))
    found = [version for version in versions if has_version(store, version)]
    if pointer is None or not found:
        return "", [current_bundle(store)]  # Raises.
    return pointer.version, [store / VERSIONS / version for version in found]


def has_version(store: Path, version: str) -> bool:
    """Return whether a version is in the store. Raises StoreError if the store cannot be read."""
    folder = store / VERSIONS / version
    try:
        return folder.is_dir() and not folder.is_symlink()
    except OSError as error:
        raise unreadable(folder, error) from error


def write_pointer(store: Path, pointer: Pointer) -> None:
    """Replace the store's pointer atomically."""
    write_file(store, store / CURRENT, msgspec.json.format(msgspec.json.encode(pointer)) + b"\n")


def write_file(store: Path, path: Path, content: bytes) -> None:
    """Replace a file of the store atomically. Every user may read it, regardless of the umask."""
    with temporary_folder(store) as folder:
        new = folder / path.name
        new.write_bytes(content)
        new.chmod(0o644)
        sync_to_disk(folder)
        create_folder(path.parent)
        new.rename(path)


def require_gate(store: Path, is_required: bool) -> None:
    """Set whether new versions need a report of ctr-gate. Raises StoreError if there is no store."""
    with locked(store):
        content = msgspec.json.format(msgspec.json.encode(Settings(require_gate=is_required)))
        write_file(store, store / SETTINGS, content + b"\n")


def add(store: Path, bundle: Path, force: bool = False, gate: Path | None = None) -> tuple[Manifest, bool]:
    """Verify a bundle, copy it into the store, and verify the copy.

    Args:
        store: The store's folder, which is created if it does not exist.
        bundle: The bundle's folder.
        force: Whether to add a bundle with warnings, such as a model that is worse than the base rate, or one that did
            not pass the gate.
        gate: The report of ctr-gate that compares the bundle with the current version, or None. The store keeps a copy.

    Returns:
        The bundle's manifest, and whether the version is new. If the store already has an intact copy of the version,
        nothing is copied. A damaged copy is replaced.

    Raises:
        StoreError: The bundle has warnings, the gate refuses it, it cannot be copied, or it changed during the copy.
        BundleError: The bundle is not valid.
    """
    manifest = open_bundle(bundle).manifest
    if manifest.warnings and not force:
        raise StoreError(f"{bundle} has warnings: {' Also, '.join(manifest.warnings)} To add it anyway, use --force")
    create_store(store)
    with locked(store):
        target = store / VERSIONS / manifest.version
        is_new = not is_intact(target)
        report = check_gate(store, manifest.version, gate, force) if is_new or gate is not None else None
        if is_new:
            copy_bundle(store, bundle, target)
        if report is not None:
            write_file(store, evidence_file(store, manifest.version), report)
        return manifest, is_new


def check_gate(store: Path, version: str, gate: Path | None, force: bool) -> bytes | None:
    """Check that a version may be added, and return its report, or None if it needs none.

    Raises:
        StoreError: It may not be added, and `force` is not set. With `force`, the reason is printed.
    """
    try:
        pointer = readable_pointer(store)
        is_required = read_store_settings(store).require_gate
        if (gate is not None or is_required) and pointer is None and (reason := damaged_pointer(store)):
            raise StoreError(f"{reason}. {HOW_TO_SKIP}.")
        if gate is not None:
            return accepted_report(gate, version, pointer)
        if is_required and pointer is not None and not was_current(version, pointer):
            raise StoreError(
                f"{store} accepts only versions that passed ctr-gate: add {version[:SHORT]} with --gate REPORT.json. "
                f"{HOW_TO_SKIP}."
            )
    except StoreError as error:
        if not force:
            raise
        print(f"ctr-store: added because of --force, although {error}", file=sys.stderr)
    return None


def copy_bundle(store: Path, bundle: Path, target: Path) -> None:
    """Copy a bundle into the store, and verify the copy. A damaged version is replaced.

    Raises:
        StoreError: The bundle cannot be copied, or it changed during the copy.
    """
    with temporary_folder(store) as folder:
        copy = folder / target.name
        try:
            shutil.copytree(bundle, copy)
        except shutil.Error as error:
            _, _, reason = error.args[0][0]
            raise StoreError(f"{bundle} cannot be copied into the store: {reason}") from error
        protect(copy)
        if open_bundle(copy).manifest.version != target.name:
            raise StoreError(f"{bundle} changed while it was being copied: add it again")
        sync_to_disk(copy)  # Before the rename, because a version counts as complete once it has its name.
        if os.path.lexists(target):
            target.rename(folder / "damaged")
        copy.rename(target)


def check_answers(folder: Path) -> None:
    """Raise StoreError if a bundle's answers to its golden requests are wrong on this machine, as in ctr-verify."""
    # onnxruntime takes long to import, and other commands do not need it.
    from service.models.verify import golden_difference
    from service.runtime.onnx_session import EngineMissing

    try:
        difference = golden_difference(open_bundle(folder))
    except BundleError:
        raise
    except (EngineMissing, ValueError) as error:
        raise StoreError(f"{folder}: the golden requests cannot be checked: {error}. {HOW_TO_SKIP_CHECK}") from error
    if not difference.is_tolerated:
        raise StoreError(
            f"{folder}: the answers to the golden requests differ from the exporter's by {difference}, more than "
            f"{TOLERATED}. A server would refuse this bundle: export the run again. {HOW_TO_SKIP_CHECK}"
        )


def activate(store: Path, version: str, force: bool = False) -> str:
    """Make a version current. Return the full version.

    The pointer is written again even if the version is already current. A server that has refused the version then
    tries it again, because the version may have been repaired.

    Args:
        store: The store's folder.
        version: The version, or at least its first MIN_PREFIX_CHARS characters.
        force: Whether to activate a version that the gate refuses. The reason is then printed.

    Raises:
        StoreError: The store does not exist, the prefix does not match exactly one version, or the store demands a
            report of ctr-gate that the version does not have.
    """
    with locked(store):
        whole = find_version(store, version)
        pointer = readable_pointer(store)
        reason = reason_to_refuse(store, whole, pointer)
        if reason is not None and not force:
            raise StoreError(f"{reason}. {HOW_TO_SKIP}.")
        if reason is not None:
            print(f"ctr-store: activated because of --force, although {reason}", file=sys.stderr)
        if pointer is None or pointer.version != whole:
            previous = [] if pointer is None else [pointer.version, *pointer.previous]
            pointer = Pointer(whole, previous[:MAX_PREVIOUS])
        write_pointer(store, pointer)
        return whole


def remove(store: Path, version: str) -> str:
    """Delete a version from the store. Return the full version.

    Args:
        store: The store's folder.
        version: The version, or at least its first MIN_PREFIX_CHARS characters.

    Raises:
        StoreError: The version is current, the store does not exist, or the prefix does not match exactly one version.
    """
    with locked(store):
        whole = find_version(store, version)
        pointer = readable_pointer(store)
        if pointer is not None and pointer.version == whole:
            raise StoreError(f"{whole} is current: activate another version first, or run ctr-store rollback {store}")
        with temporary_folder(store) as folder:
            (store / VERSIONS / whole).rename(folder / whole)
        evidence_file(store, whole).unlink(missing_ok=True)
        return whole


def rollback(store: Path) -> str:
    """Make the previously current version current again, and return it.

    Versions that have been removed are skipped. A second rollback goes back one more version.

    Raises:
        StoreError: The store does not exist, or no previous version is left.
    """
    with locked(store):
        previous = previous_versions(store)
        if not previous:
            raise StoreError(f"{store} has no previous version to go back to: see ctr-store list {store}")
        write_pointer(store, Pointer(previous[0], previous[1:]))
        return previous[0]


def previous_versions(store: Path) -> list[str]:
    """Return the previously current versions, newest first, without those before the first one that still exists."""
    pointer = read_pointer(store)
    previous = [] if pointer is None else pointer.previous
    stored = stored_versions(store)
    index = next((index for index, version in enumerate(previous) if version in stored), len(previous))
    return previous[index:]


def how_to_activate(store: Path, version: str) -> str:
    """Return the command that makes a version current: a rollback, if it leads to this version."""
    try:
        leads_there = previous_versions(store)[:1] == [version]
    except StoreError:
        leads_there = False
    return f"ctr-store rollback {store}" if leads_there else f"ctr-store activate {store} {version[:SHORT]}"


def find_version(store: Path, prefix: str) -> str:
    """Return the one version that starts with a prefix. Raises StoreError if there is not exactly one."""
    if len(prefix) < MIN_PREFIX_CHARS:
        raise StoreError(f"{prefix!r} is too short: give at least {MIN_PREFIX_CHARS} characters of the version")
    found = [version for version in stored_versions(store) if version.startswith(prefix)]
    if len(found) != 1:
        count = f"{len(found)} versions start" if found else "no version starts"
        raise StoreError(f"{store}: {count} with {prefix[:100]!r}: see ctr-store list {store}")
    return found[0]


def stored_versions(store: Path) -> list[str]:
    """Return the versions in the store, sorted. A symbolic link is not a version: see `current_bundle`."""
    folder = store / VERSIONS
    paths = folder.iterdir() if folder.is_dir() else ()
    names = [path.name for path in paths if path.is_dir() and not path.is_symlink()]
    return sorted(name for name in names if VERSION.fullmatch(name))


def is_intact(folder: Path) -> bool:
    """Return whether a folder of the store contains an unchanged copy of the version that it is named after."""
    try:
        return not folder.is_symlink() and open_bundle(folder).manifest.version == folder.name
    except BundleError:
        return False


def create_store(store: Path) -> None:
    """Create an empty store if it does not exist. Other users may read it, regardless of the umask."""
    store.parent.mkdir(parents=True, exist_ok=True)
    for folder in (store, store / VERSIONS):
        create_folder(folder)


def create_folder(folder: Path) -> None:
    """Create a folder that other users may read, unless it exists. Raises StoreError if something else exists."""
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise StoreError(f"{folder} is not a folder: remove it, and run the command again")
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)


def protect(folder: Path) -> None:
    """Make the files of a copied bundle readable by everyone and writable by nobody.

    The server may run as another user. It maps the files into memory, so writing to one of them in place would kill
    its workers.
    """
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o444)


@contextmanager
def temporary_folder(store: Path) -> Iterator[Path]:
    """Create a folder in the store for files that are not yet complete, or that are about to be deleted."""
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=store) as folder:
        yield Path(folder)


def sync_to_disk(folder: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for path in (*folder.rglob("*"), folder):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store's lock, and delete what a killed ctr-store left behind. Raises StoreError if there is no store."""
    check_is_store(store)
    with (store / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for unfinished in store.glob(f"{UNFINISHED}*"):
            if unfinished.is_dir() and not unfinished.is_symlink():
                shutil.rmtree(unfinished)
            else:
                unfinished.unlink()
        yield


def check_is_store(store: Path) -> None:
    """Raise StoreError if there is no store in this folder."""
    if not (store / VERSIONS).is_dir():
        raise StoreError(f"{store} is not a store: create one with ctr-store add {store} BUNDLE")


if __name__ == "__main__":
    sys.exit(main())
