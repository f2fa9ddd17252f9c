"""How many connections each worker has, in memory that all share: whoever has more leaves new ones to the others.

The system wakes the workers that wait for a connection always in the same order. Without this, clients that connect one
after the other are all one worker's, for as long as they stay, and the other cores do nothing.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path

FILE = "connections"
WORD = 8
ABSENT = -1


class Board:
    """A word for each worker, in a file. Each worker writes its own, and the supervisor those of workers that died."""

    def __init__(self, folder: Path, places: int | None = None) -> None:
        """places: makes the file anew, with so many; None: another process has."""
        path = folder / FILE
        if places is not None:
            path.write_bytes(ABSENT.to_bytes(WORD, "little", signed=True) * places)
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")

    def put(self, place: int, connections: int) -> None:
        self._words[place] = connections

    def leave(self, place: int) -> None:
        self._words[place] = ABSENT

    def fewest_of_others(self, place: int) -> int | None:
        """None: there is no other worker."""
        others = [one for at, one in enumerate(self._words) if at != place and one != ABSENT]
        return min(others, default=None)


@dataclass(frozen=True)
class Place:
    """One worker's."""

    board: Board
    number: int

    def put(self, connections: int) -> None:
        self.board.put(self.number, connections)

    def leave(self) -> None:
        self.board.leave(self.number)

    def has_more(self, connections: int) -> bool:
        """Than another worker."""
        fewest = self.board.fewest_of_others(self.number)
        return fewest is not None and connections > fewest
