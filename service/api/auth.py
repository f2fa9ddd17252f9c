"""API keys, from a file: who may ask. Lines of `name key`; the name is what metrics and the log say."""

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from service.settings import SettingsError

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
KEY = re.compile(r"[!-~]{16,512}")
ADMIN = "admin"
LARGEST_BYTES = 1024 * 1024


class KeysError(SettingsError):
    """A file of keys that cannot be used. Names the file and the line, never a key."""


@dataclass(frozen=True)
class ApiKeys:
    """Digests and not keys: of equal length, so that comparing them takes always the same time."""

    names: tuple[str, ...]
    _digests: tuple[bytes, ...] = field(repr=False)

    def name_of(self, headers: Mapping[str, str]) -> str | None:
        """Whose key the headers have: `Authorization: Bearer KEY`, or `X-Api-Key: KEY`. None: nobody's."""
        given = hashlib.sha256(_given(headers).encode("utf-8", "surrogateescape")).digest()
        found = None
        # All of them, and to the end: how long it takes must not say which one was nearly right.
        for name, digest in zip(self.names, self._digests, strict=True):
            if hmac.compare_digest(given, digest):
                found = name
        return found


def read_keys(path: Path) -> ApiKeys:
    """Raises KeysError for what is no line of `name key`, a name or a key that is there twice, and no key at all."""
    names: list[str] = []
    keys: list[str] = []
    for number, line in _lines(path):
        name, _, key = line.partition(" ")
        if not NAME.fullmatch(name):
            raise KeysError(
                f"{path}, line {number}: begin with a name of letters, digits, `_`, `.` or `-`, then the key"
            )
        _check_key(path, number, key.strip())
        if name in names or key.strip() in keys:
            raise KeysError(f"{path}, line {number}: this name or this key is there already: remove one")
        names.append(name)
        keys.append(key.strip())
    return _keys(path, names, keys)


def read_admin_key(path: Path) -> ApiKeys:
    """From a file with a key and nothing else. Raises KeysError."""
    lines = _lines(path)
    for number, line in lines:
        _check_key(path, number, line)
    if len(lines) > 1:
        raise KeysError(f"{path}: has {len(lines)} lines: put one key there")
    return _keys(path, [ADMIN] * len(lines), [line for _, line in lines])


def _keys(path: Path, names: list[str], keys: list[str]) -> ApiKeys:
    if not keys:
        raise KeysError(f"{path}: has no key: put one there, or do not set the file")
    return ApiKeys(tuple(names), tuple(hashlib.sha256(key.encode()).digest() for key in keys))


def _lines(path: Path) -> list[tuple[int, str]]:
    """With their numbers, without blank ones and comments."""
    try:
        if path.stat().st_mode & stat.S_IROTH:
            log.warning("%s can be read by everybody: chmod 600", path)
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
        if len(raw) > LARGEST_BYTES:
            raise KeysError(f"{path}: has more than {LARGEST_BYTES} bytes: remove the keys that nobody needs")
        text = raw.decode()
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}: the keys cannot be read") from error
    except UnicodeDecodeError as error:
        raise KeysError(f"{path}: is no text: write lines of `name key`") from error
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]


def _check_key(path: Path, number: int, key: str) -> None:
    if not KEY.fullmatch(key):
        raise KeysError(f"{path}, line {number}: a key has 16 to 512 printable ASCII characters and no blank")


def _given(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
