"""Explain errors of the operating system: who needs a permission on which path, and which limits can be raised."""

import errno
import grp
import os
import pwd
import shlex
import stat
from pathlib import Path

OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
HOW_TO_RAISE_LIMITS = "Raise the limit of this process: ulimit -n for open files, ulimit -v for memory."


def describe(error: Exception) -> str:
    """Return the message of an error for the user of a command. A PermissionError is explained (see explain_denied)."""
    return explain_denied(Path(error.filename or ".")) if isinstance(error, PermissionError) else str(error)


def explain_denied(path: Path, *, secret: bool = False) -> str:
    """Return a message for a PermissionError: the user, the first path that denies access, and how to fix it.

    Args:
        path: The path.
        secret: Whether the path must not be readable by all users, for example because it contains API keys. If False,
            the message may suggest making it readable by all.
    """
    path = Path(os.path.abspath(path))
    for folder in reversed(path.parents):
        if not may(folder, os.X_OK):
            return denied("enter", folder)
    if path.is_dir() and not may(path, os.R_OK | os.X_OK):
        return denied("read", path, secret)
    if not path.exists():
        return denied("write in", path.parent)
    if not may(path, os.R_OK):
        return denied("read", path, secret)
    if not may(path, os.W_OK):
        return denied("write", path)
    return f"access to {path} is denied although its mode permits it. Check SELinux, AppArmor and the mount options."


def denied(verb: str, path: Path, secret: bool = False) -> str:
    """Return a message for a permission on a path that this process's user does not have."""
    status = path.stat()
    user, owner, mode = user_name(os.geteuid()), user_name(status.st_uid), stat.S_IMODE(status.st_mode)
    quoted = shlex.quote(str(path))
    if verb.startswith("write"):
        way_out = f"Run this command as {owner}, or make the path writable for {user}."
    elif verb == "enter":
        # Permission to enter a folder is enough, and does not allow listing it. -R would expose all files below it.
        way_out = f"Run chmod go+x {quoted} as {owner}, or run this command as {owner}."
    elif secret:
        modes = "0750" if stat.S_ISDIR(status.st_mode) else "0640"
        group = group_name(os.getegid())
        way_out = f"As root, run chgrp {group} {quoted} && chmod {modes} {quoted}, or chown {user} {quoted}."
    else:
        way_out = f"Run chmod -R go+rX {quoted} as {owner}, or run this command as {owner}."
    return f"user {user} may not {verb} {path} (owner {owner}, mode {mode:04o}). {way_out}"


def may(path: Path, access: int) -> bool:
    """Return whether this process has this access (os.R_OK, os.W_OK or os.X_OK) to a path."""
    return os.access(path, access, effective_ids=os.access in os.supports_effective_ids)


def user_name(uid: int) -> str:
    """Return a user's name, or the uid if the user has no name, as is common in containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return a group's name, or the gid if the group has no name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
