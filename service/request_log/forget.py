"""Delete all lines of some units from a request log: `python -m service.request_log.forget FOLDER --unit UNIT`."""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from contract.segments import finished_files, unfinished_files
from service.segments import MAX_SEGMENT_S, is_at, sync_folder

MAX_PASSES = 10


class Unit(msgspec.Struct):
    unit: str | None = None


UNIT = msgspec.json.Decoder(Unit)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 if no line of the units is left, 1 if some are in files that are being written, 2 after an error."""
    parser = argparse.ArgumentParser(
        "python -m service.request_log.forget",
        description="Delete all lines of some units from a request log, while servers may be writing to it.",
    )
    parser.add_argument("folder", type=Path, help="the log's folder (CTR_REQUEST_LOG), or a folder of shipped files")
    parser.add_argument("--unit", nargs="+", required=True, help="the units, as they are written in the log")
    arguments = parser.parse_args(argv)
    units = frozenset(arguments.unit)
    try:
        if not arguments.folder.is_dir():
            raise NotADirectoryError(f"{arguments.folder} is not a folder. Pass the folder of the request log.")
        deleted = forget(arguments.folder, units)
        left = {path: count_lines(path, units) for path in unfinished_files(arguments.folder)}
    except OSError as error:
        print(f"forget: {error}", file=sys.stderr)
        return 2
    for path, lines in sorted(deleted.items()):
        print(f"{path.name}: deleted {lines} lines")
    print(f"deleted {sum(deleted.values())} lines from {len(deleted)} files")
    if not any(left.values()):
        return 0
    print(
        f"forget: files that are being written have {sum(left.values())} more lines of these units. "
        f"Run the command again after {MAX_SEGMENT_S:g} s, or after the servers have stopped.",
        file=sys.stderr,
    )
    return 1


def forget(folder: Path, units: Collection[str]) -> dict[Path, int]:
    """Delete the lines of these units from the complete files of a folder.

    Returns:
        The number of deleted lines of each file that had any.

    Raises:
        OSError: A file cannot be read or replaced, or the files are renamed all the time.
    """
    deleted: dict[Path, int] = {}
    for _ in range(MAX_PASSES):
        found = {path: lines for path in finished_files(folder) if (lines := rewrite(path, units))}
        if not found:
            return deleted
        deleted.update(found)
    raise OSError(f"{folder}: files are being renamed all the time. Stop the shipper, and run the command again.")


def rewrite(path: Path, units: Collection[str]) -> int:
    """Replace a file by a copy without the lines of these units. Return how many lines it had.

    A file that is renamed or deleted meanwhile stays as it is. It is found by its new name in the next pass.
    """
    lines = count_lines(path, units)
    if not lines:
        return 0
    copy = path.with_name(f"{path.name}.new")
    try:
        copy.touch(0o600)  # like the files of the log
        with path.open("rb") as file, copy.open("wb") as kept:
            kept.writelines(raw for raw in file if unit_of(raw) not in units)
            kept.flush()
            os.fsync(kept.fileno())
            if is_at(path, file):
                copy.rename(path)
                sync_folder(path.parent)
    except FileNotFoundError:
        pass
    finally:
        copy.unlink(missing_ok=True)
    return lines


def count_lines(path: Path, units: Collection[str]) -> int:
    """Return how many lines of a file belong to these units. It is 0 if the file does not exist anymore."""
    try:
        with path.open("rb") as file:
            return sum(unit_of(raw) in units for raw in file)
    except FileNotFoundError:
        return 0


def unit_of(raw: bytes) -> str | None:
    """Return the unit of a line. It is None for lines without a unit, and for lines that cannot be read."""
    try:
        return UNIT.decode(raw).unit
    except (ValueError, RecursionError):
        return None


if __name__ == "__main__":
    sys.exit(main())
