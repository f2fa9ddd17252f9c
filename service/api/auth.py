"""API keys, read from a file.

Each line of the file has the form `name key`. Metrics and logs show the name, never the key.
"""

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contract.system_errors import explain_denied
from service.errors import Unauthorized
from service.settings import SettingsError

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
KEY = re.compile(r"[!-~]{16,512}")
ADMIN = "admin"
MAX_FILE_BYTES = 1024 * 1024


class KeysError(SettingsError):
    """A key file cannot be used. The message names the file and the line, but never a key."""


@dataclass(frozen=True)
class ApiKeys:
    """API keys by name. Stores digests, because they all have the same length and can be compared in constant time."""

    names: tuple[str, ...]
    _digests: tuple[bytes, ...] = field(repr=False)

    def name_of(self, headers: Mapping[str, str]) -> str | None:
        """Return the name of the key in `Authorization: Bearer KEY` or `X-Api-Key: KEY`, or None if no key matches."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        # Always compare with every key, so that the duration does not reveal which one matched.
        for name, known in zip(self.names, self._digests, strict=True):
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def require(self, headers: Mapping[str, str]) -> str:
        """Return the name of the request's key. Raises Unauthorized if no key matches."""
        name = self.name_of(headers)
        if name is None:
            raise Unauthorized("Send an API key in the header Authorization: Bearer KEY or X-Api-Key: KEY.")
        return name


def read_keys(path: Path) -> ApiKeys:
    """Read a file with a `name key` line for each client. Blank lines and lines that start with # are ignored.

    Raises:
        KeysError: The file cannot be read, a line is invalid, a name or key appears twice, or there is no key.
    """
    names: list[str] = []
    keys: list[str] = []
    for number, line in read_lines(path):
        name, _, key = line.partition(" ")
        key = key.strip()
        if not NAME.fullmatch(name):
            raise KeysError(
                f"{path}:{number}: the name must be 1 to 64 letters, digits, '_', '.' or '-'. "
                "The line must have the form `name key`."
            )
        check_key(path, number, key)
        if name in names or key in keys:
            raise KeysError(f"{path}:{number}: this name or this key is already in the file. Remove one of the lines.")
        names.append(name)
        keys.append(key)
    return hashed(path, names, keys)


def read_admin_key(path: Path) -> ApiKeys:
    """Read a file that holds one key and no name.

    Raises:
        KeysError: The file cannot be read, its key is invalid, or it does not hold exactly one key.
    """
    lines = read_lines(path)
    for number, line in lines:
        check_key(path, number, line)
    if len(lines) > 1:
        raise KeysError(f"{path}: found {len(lines)} keys; expected one. Remove the others.")
    return hashed(path, [ADMIN] * len(lines), [line for _, line in lines])


def hashed(path: Path, names: Sequence[str], keys: Sequence[str]) -> ApiKeys:
    """Return the keys of a file. Raises KeysError if there are none."""
    if not keys:
        raise KeysError(f"{path}: the file contains no key. Add one, or unset the setting.")
    return ApiKeys(tuple(names), tuple(hashlib.sha256(key.encode()).digest() for key in keys))


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a file, without blank lines and comments. Raises KeysError."""
    try:
        if path.stat().st_mode & stat.S_IROTH:
            log.warning("%s is readable by every user: run chmod 600 on it", path)
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise KeysError(f"{path}: the file is larger than {MAX_FILE_BYTES} bytes. Remove unused keys.")
        text = raw.decode()
    except PermissionError as error:
        raise KeysError(f"{path}: the keys cannot be read: {explain_denied(path, secret=True)}") from error
    except OSError as error:
        raise KeysError(
            f"{path}: the keys cannot be read ({error.strerror}). Check the path and its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise KeysError(f"{path}: the file is not UTF-8 text. Save it as UTF-8.") from error
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]


def check_key(path: Path, number: int, key: str) -> None:
    """Raise KeysError unless the key on this line of the file is valid."""
    if not KEY.fullmatch(key):
        raise KeysError(f"{path}:{number}: the key must be 16 to 512 printable ASCII characters without spaces.")
