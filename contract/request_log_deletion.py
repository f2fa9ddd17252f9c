"""Delete a unit, such as a user, from a request log, while servers and shippers work on its files."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from contract.segments import finished_files, is_at, sync, unfinished_files

MAX_PASSES = 10
OWN, OTHER, UNREADABLE = "own", "other", "unreadable"  # kinds of lines


class Unit(msgspec.Struct):
    unit: str | None = None


UNIT = msgspec.json.Decoder(Unit)


@dataclass
class DeletedLines:
    """What became of the lines of a unit.

    Attributes:
        deleted: The number of deleted lines of each file that had any.
        unreadable: The number of lines of any unit that cannot be read. They were kept.
        left: The number of lines of the unit in files that are being written.
    """

    deleted: dict[Path, int] = field(default_factory=dict)
    unreadable: int = 0
    left: int = 0

    def warnings(self) -> Iterator[str]:
        """Yield what the user of a command should look at."""
        if self.unreadable:
            yield f"{self.unreadable:,} lines cannot be read, and were kept"
        if self.left:
            yield (
                f"files that are being written have {self.left:,} more lines of this unit. Run this command again "
                "after 5 minutes, or after the servers have stopped."
            )


def delete_lines(unit: str, folders: Iterable[Path]) -> DeletedLines:
    """Delete a unit's lines from the complete files of request logs. Files without such lines are not changed.

    Args:
        unit: The unit as it is in the log. If the server has a key for pseudonyms, this is the pseudonym.
        folders: Request logs, and folders of shipped files.

    Raises:
        OSError: A file cannot be read or replaced, or files are renamed in every pass.
    """
    result = DeletedLines()
    for folder in folders:
        for _ in range(MAX_PASSES):
            # First, because a file that is finished meanwhile must be counted or rewritten.
            left = sum(count_lines(path, unit)[OWN] for path in unfinished_files(folder))
            files = {path: rewrite(path, unit) for path in finished_files(folder)}
            found = {path: lines[OWN] for path, lines in files.items() if lines[OWN]}
            if not found:
                break
            result.deleted.update(found)
        else:
            raise OSError(f"{folder}: files are renamed all the time. Stop the shipper, and run this command again.")
        result.unreadable += sum(lines[UNREADABLE] for lines in files.values())
        result.left += left
    return result


def rewrite(path: Path, unit: str) -> Counter[str]:
    """Replace a file by a copy without the unit's lines, if it has any. Return how many lines of each kind it had.

    A file that is renamed or deleted meanwhile stays as it is. It is found by its new name in the next pass.
    """
    lines = count_lines(path, unit)
    if not lines[OWN]:
        return lines
    copy = path.with_name(f"{path.name}.new")
    try:
        copy.touch(0o600)  # like the files of the log
        with path.open("rb") as file, copy.open("wb") as kept:
            kept.writelines(raw for raw in file if kind_of(raw, unit) != OWN)
            kept.flush()
            os.fsync(kept.fileno())
            if is_at(path, file):
                copy.rename(path)
                sync(path.parent)
    except FileNotFoundError:
        pass
    finally:
        copy.unlink(missing_ok=True)
    return lines


def count_lines(path: Path, unit: str) -> Counter[str]:
    """Return how many lines of each kind a file has. It has none if it does not exist anymore."""
    try:
        with path.open("rb") as file:
            return Counter(kind_of(raw, unit) for raw in file)
    except FileNotFoundError:
        return Counter()


def kind_of(raw: bytes, unit: str) -> str:
    """Return whether a line belongs to the unit, to something else, or cannot be read."""
    try:
        return OWN if UNIT.decode(raw).unit == unit else OTHER
    except (ValueError, RecursionError):
        return UNREADABLE
