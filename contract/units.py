"""Units: the users or households that requests belong to, and their assignment to buckets.

A unit's bucket decides whether its requests are logged and which model answers them. Each decision uses its own salt,
because with one salt for all of them, the logged units would all get the same model.
"""

import hashlib

BUCKETS = 10_000
REQUEST_LOG_SALT = "request-log"


def bucket(salt: str, unit: str) -> int:
    """Return a unit's bucket, from 0 to BUCKETS - 1.

    Other programs compute the same number: BLAKE2b with an 8-byte digest over the UTF-8 bytes of the salt, a NUL byte
    and the unit's token, read as a big-endian integer, modulo 10,000. tests/contract/test_units.py has test vectors.

    Args:
        salt: The name of the decision. It must not contain a NUL character.
        unit: The unit's canonical token (contract/tokens.py), before it becomes a pseudonym.
    """
    text = f"{salt}\0{unit}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % BUCKETS
