"""Detect that the files of a bundle were changed while a server uses them."""

from pathlib import Path

from contract.bundle import Bundle

Stamp = tuple[int, int, int, int] | None


def stamps(bundle: Bundle) -> dict[str, Stamp]:
    """Return what changes if a file is written to, by file. This reads no file."""
    return {name: stamp(bundle.folder / name) for name in bundle.manifest.files}


def changed_files(bundle: Bundle, opened: dict[str, Stamp]) -> list[str]:
    """Return the files that may have changed since the bundle was opened. `opened` is the result of stamps() then."""
    return [name for name, found in stamps(bundle).items() if found != opened[name]]


def stamp(path: Path) -> Stamp:
    """Return the size, the times of the last changes and the inode of a file. None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
