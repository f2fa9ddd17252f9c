"""Arrays that grow on disk, so that no log has to fit into memory."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray


class GrowingArray:
    """Writes a .npy file rows by rows; the number of rows goes into its header at the end.

    columns: of a matrix; None makes a vector.
    """

    def __init__(self, path: Path, dtype: DTypeLike, columns: int | None = None) -> None:
        self._dtype = np.dtype(dtype)
        self._columns = () if columns is None else (columns,)
        self.rows = 0
        self._file = path.open("wb")
        self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._file:
            if error is None:
                # numpy pads the header so that the first dimension can grow in place.
                self._file.seek(0)
                self._write_header()

    def append(self, rows: NDArray[Any]) -> None:
        """rows [n] or [n, columns]."""
        assert rows.shape[1:] == self._columns
        self._file.write(np.ascontiguousarray(rows, self._dtype).reshape(-1).data)
        self.rows += len(rows)

    def _write_header(self) -> None:
        shape = (self.rows, *self._columns)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def chunks(path: Path, rows: int) -> Iterator[NDArray[Any]]:
    """A vector's .npy file, so many rows at a time, read and not mapped: a mapped page counts as this process's."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        _, _, dtype = np.lib.format.read_array_header_1_0(file)
        while block := file.read(rows * dtype.itemsize):
            yield np.frombuffer(block, dtype)
