"""Pseudonyms: replace personal values, such as user ids, with keyed hashes. Training and serving both use this code.

A pseudonym is "p:" followed by the first 32 hex digits of HMAC-SHA256(key, token). docs/privacy.md describes what it
protects against, and what it does not.
"""

import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from msgspec import UNSET

from contract.schema import FeatureSchema
from contract.system_errors import explain_denied

log = logging.getLogger(__name__)

VARIABLE = "CTR_PSEUDONYM_KEY_FILE"
HOW_TO_SET_A_KEY = f"set {VARIABLE} to the file of the key"
HOW_TO_MAKE_A_KEY = "(umask 077 && openssl rand -hex 32 > FILE)"
MIN_KEY_BYTES = 16
MAX_KEY_BYTES = 4096
DIGITS = 32
PSEUDONYM = re.compile(f"p:[0-9a-f]{{{DIGITS}}}")
TEXT_BYTES = frozenset((*range(0x20, 0x7F), *b"\t\n\r"))
# The cache holds raw values, in memory only. It is bounded in entries and in the length of a value.
CACHED_TOKENS = 10_000
MAX_CACHED_CHARS = 128


class PseudonymKeyError(ValueError):
    """The key for pseudonyms is missing or cannot be used. The message never contains the key."""


class Pseudonymizer:
    """Computes pseudonyms with one key. Its methods may be called from several threads at once.

    Attributes:
        fingerprint: Identifies the key without revealing it: a keyed digest of a constant.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.fingerprint = self._digest("fingerprint of the key for pseudonyms")
        # A candidate's value, such as a publisher, repeats in most requests, and a hit costs a tenth of a hash.
        self._cached = lru_cache(CACHED_TOKENS)(self._pseudonym)

    def pseudonym(self, token: str) -> str:
        """Return the pseudonym of a token. A token that has the form of a pseudonym is returned unchanged."""
        return self._cached(token) if len(token) <= MAX_CACHED_CHARS else self._pseudonym(token)

    def _pseudonym(self, token: str) -> str:
        return token if is_pseudonym(token) else f"p:{self._digest(token)}"

    def _digest(self, text: str) -> str:
        # A JSON string may contain a lone surrogate, which strict UTF-8 cannot encode.
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()[:DIGITS]


def is_pseudonym(token: str) -> bool:
    """Return whether a token has the form of a pseudonym."""
    return token.startswith("p:") and PSEUDONYM.fullmatch(token) is not None


def unknown_pseudonym(index: int) -> str:
    """Return a pseudonym that no real value has. Different indices give different pseudonyms."""
    return f"p:{hashlib.sha256(f'unseen-{index}'.encode()).hexdigest()[:DIGITS]}"


def read_pseudonym_key(path: Path) -> Pseudonymizer:
    """Read the key in a file.

    If the file is text (printable ASCII), white space around the key is removed, because editors and `echo` add a line
    break. Any other file is used as it is, because a random byte may look like white space.

    Raises:
        PseudonymKeyError: The file cannot be read, or the key is too short or too long.
    """
    try:
        if path.stat().st_mode & stat.S_IROTH:
            log.warning("%s is readable by every user: run chmod 600 on it", path)
        with path.open("rb") as file:
            key = file.read(MAX_KEY_BYTES + 1)
    except PermissionError as error:
        raise PseudonymKeyError(f"{path}: the key cannot be read: {explain_denied(path, secret=True)}") from error
    except OSError as error:
        raise PseudonymKeyError(
            f"{path}: the key cannot be read ({error.strerror}). Check the path, or create a key: {HOW_TO_MAKE_A_KEY}"
        ) from error
    if TEXT_BYTES.issuperset(key):
        key = key.strip()
    if len(key) > MAX_KEY_BYTES:
        raise PseudonymKeyError(f"{path} has more than {MAX_KEY_BYTES} bytes, so it is not a key. Check the path.")
    if len(key) < MIN_KEY_BYTES:
        raise PseudonymKeyError(
            f"{path} has {len(key)} bytes; expected at least {MIN_KEY_BYTES} random bytes. "
            f"Create a key: {HOW_TO_MAKE_A_KEY}"
        )
    return Pseudonymizer(key)


def open_pseudonymizer(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Pseudonymizer | None:
    """Return the pseudonymizer of a command, or None if it has no key.

    Args:
        path: The file that --pseudonym-key names. It takes precedence over the environment.
        environment: Where CTR_PSEUDONYM_KEY_FILE may be set. An empty value counts as unset.

    Raises:
        PseudonymKeyError: See `read_pseudonym_key`.
    """
    if path is None and (named := environment.get(VARIABLE)):
        path = Path(named)
    return None if path is None else read_pseudonym_key(path)


def check_pseudonym_key(schema: FeatureSchema, pseudonyms: Pseudonymizer | None, *, required: bool = False) -> None:
    """Check that a key is the one that the schema's pseudonyms were made with.

    Args:
        schema: The fields of a run or bundle. If none of them has pseudonyms, every key is fine.
        pseudonyms: The pseudonymizer, or None if there is no key.
        required: Whether there must be a key. Without one, only values that are pseudonyms already can be read.

    Raises:
        PseudonymKeyError: It is another key, or it is required and there is none.
    """
    fields = ", ".join(f'"{field.name}"' for field in schema.fields if field.pseudonym is not UNSET)
    if not fields or (pseudonyms is None and not required):
        return
    if pseudonyms is None:
        raise PseudonymKeyError(
            f"the model reads pseudonyms in {fields}, and there is no key: {HOW_TO_SET_A_KEY} that ctr-prepare used"
        )
    if pseudonyms.fingerprint != schema.pseudonym_key:
        raise PseudonymKeyError(
            f"the model's pseudonyms in {fields} were made with the key {schema.pseudonym_key}, but the fingerprint of "
            f"this key is {pseudonyms.fingerprint}: {HOW_TO_SET_A_KEY} that ctr-prepare used, or prepare, train and "
            "export again with this key"
        )
