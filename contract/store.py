"""The store of ctr-store, as far as other programs read it: which version of a model is current.

STORE/versions/<version>/   a bundle
STORE/current               the current version, and the previously current ones
"""

import re
from pathlib import Path

import msgspec

from contract.regular_file import read_regular_file
from contract.system_errors import explain_denied

VERSIONS = "versions"
CURRENT = "current"
VERSION = re.compile(r"[0-9a-f]{64}")
MAX_BYTES = 1024 * 1024  # of CURRENT, and of the settings


class StoreError(ValueError):
    """The operation is not possible. The message states how to fix the problem."""


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of STORE/current.

    Attributes:
        version: The current version.
        previous: The previously current versions, newest first.
    """

    version: str
    previous: list[str] = []


def read_pointer(store: Path) -> Pointer | None:
    """Return the store's pointer, or None if no version has ever been activated.

    Raises:
        StoreError: The pointer cannot be read, or it names something other than versions.
    """
    path = store / CURRENT
    try:
        pointer = msgspec.json.decode(read_regular_file(path, MAX_BYTES), type=Pointer)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise unreadable(path, error) from error
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # msgspec.DecodeError and UnicodeDecodeError, too
        raise StoreError(f"{path} cannot be read ({error}): activate a version again") from error
    # A version is a name, not a path, so a pointer cannot lead outside the store.
    for version in (pointer.version, *pointer.previous):
        if not VERSION.fullmatch(version):
            raise StoreError(f"{path} names {version[:100]!r}, which is not a version: activate a version again")
    return pointer


def unreadable(path: Path, error: OSError) -> StoreError:
    """Return the StoreError for a part of the store that cannot be read."""
    if isinstance(error, PermissionError):
        return StoreError(explain_denied(Path(error.filename or path)))
    return StoreError(f"{path} cannot be read ({error.strerror or error}): check the disk and its mount")


def readable_pointer(store: Path) -> Pointer | None:
    """Return the store's pointer, or None if it is missing or damaged. Activating a version repairs it."""
    try:
        return read_pointer(store)
    except StoreError:
        return None
