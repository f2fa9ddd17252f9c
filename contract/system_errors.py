"""Errors of the operating system: whose permission is missing on which path, and which limits can be raised."""

import errno
import os
import pwd
import stat
from pathlib import Path

OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
HOW_TO_RAISE_LIMITS = "Raise the limit of this process: ulimit -n for open files, ulimit -v for memory."


def explain_denied(path: Path) -> str:
    """Return a message for a PermissionError at a path: the user, the first path that refuses, and the way out."""
    path = Path(os.path.abspath(path))
    for folder in reversed(path.parents):
        if not may(folder, os.X_OK):
            return denied("enter", folder)
    if path.is_dir() and not may(path, os.R_OK | os.X_OK):
        return denied("read", path)
    if not path.exists():
        return denied("write in", path.parent)
    if not may(path, os.R_OK):
        return denied("read", path)
    if not may(path, os.W_OK):
        return denied("write", path)
    return f"access to {path} is denied although its mode permits it. Check SELinux, AppArmor and the mount options."


def denied(verb: str, path: Path) -> str:
    """Return a message that this process's user lacks a permission on a path."""
    status = path.stat()
    owner, mode = user_name(status.st_uid), stat.S_IMODE(status.st_mode)
    if verb.startswith("write"):
        way_out = f"Run this command as {owner}, or make the path writable for {user_name(os.geteuid())}."
    else:
        way_out = f"Run chmod -R go+rX {path} as {owner}, or run this command as {owner}."
    return f"user {user_name(os.geteuid())} may not {verb} {path} (owner {owner}, mode {mode:04o}). {way_out}"


def may(path: Path, access: int) -> bool:
    """Return whether this process has this access (os.R_OK, os.W_OK or os.X_OK) to a path."""
    return os.access(path, access, effective_ids=os.access in os.supports_effective_ids)


def user_name(uid: int) -> str:
    """Return a user's name, or the number if it has none, as is usual in containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
