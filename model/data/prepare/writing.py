"""Writing a prepared log's arrays in chunks, so that the log does not have to fit in memory."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from contract.schema import Field
from contract.tokens import Numbers
from contract.vocabulary import MISSING

# Some versions of Python 3.11 and 3.12 raise SystemError if several threads parse a header, which is a Python literal,
# at the same time (github.com/python/cpython/issues/106905).
HEADER_LOCK = Lock()
CHUNK_ROWS = 16_000  # 26 columns of this length fit in a processor's cache


class GrowingArray:
    """A .npy file that is written a few rows at a time.

    The header has a fixed size, so the number of rows can be filled in at the end.
    """

    def __init__(self, path: Path, dtype: DTypeLike, columns: int | None = None) -> None:
        """Open the file.

        Args:
            path: The file.
            dtype: The type of its numbers.
            columns: The number of columns of a matrix, or None for a vector.
        """
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
        """Append rows, (n) or (n, columns)."""
        assert rows.shape[1:] == self._columns
        self._file.write(np.ascontiguousarray(rows, self._dtype).reshape(-1).data)
        self.rows += len(rows)

    def _write_header(self) -> None:
        shape = (self.rows, *self._columns)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def load_column(path: Path) -> NDArray[Any]:
    """Return the vector in a .npy file. Several threads may call this function at the same time."""
    with HEADER_LOCK:
        column: NDArray[Any] = np.load(path)
        return column


def read_chunks(path: Path) -> Iterator[NDArray[Any]]:
    """Yield the vector in a .npy file, CHUNK_ROWS elements at a time.

    The file is read rather than memory-mapped, because mapped pages would count as memory of this process.
    """
    with path.open("rb") as file:
        with HEADER_LOCK:
            np.lib.format.read_magic(file)
            _, _, dtype = np.lib.format.read_array_header_1_0(file)
        while block := file.read(CHUNK_ROWS * dtype.itemsize):
            yield np.frombuffer(block, dtype)


def read_rows(columns: Sequence[Path], kept: Path | None) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield the rows of several vectors in .npy files, at most CHUNK_ROWS rows at a time.

    Args:
        columns: The files. They have the same number of rows.
        kept: The file that says which rows to yield, bool (rows), or None for all rows.
    """
    if kept is None:
        yield from zip(*map(read_chunks, columns), strict=True)
        return
    for is_kept, *chunk in zip(read_chunks(kept), *map(read_chunks, columns), strict=True):
        yield tuple(column[is_kept] for column in chunk)


def write_column(path: Path, column: Path, kept: Path | None) -> int:
    """Write the rows of a vector to another file, and return the number of rows that are not kept. See read_rows()."""
    if kept is None:
        column.rename(path)
        return 0
    rows = load_column(column)
    written = rows[load_column(kept)]
    with GrowingArray(path, rows.dtype) as array:
        array.append(written)
    return len(rows) - len(written)


def write_ids(
    path: Path, columns: Mapping[str, Path], ids: Mapping[str, NDArray[np.int32]], kept: Path | None = None
) -> dict[str, float]:
    """Write a split's ids, int32 (rows, categorical fields), and return the share of missing values by field.

    Args:
        path: The file to write.
        columns: The file with the codes of each categorical field, in the schema's order.
        ids: The ids of a field's codes, by field.
        kept: See read_rows().
    """
    missing = np.zeros(len(columns))
    with GrowingArray(path, np.int32, len(columns)) as array:
        for chunk in read_rows([*columns.values()], kept):
            id_columns = [ids[name][codes] for name, codes in zip(columns, chunk, strict=True)]
            missing += [np.count_nonzero(column == MISSING) for column in id_columns]
            array.append(np.stack(id_columns, axis=1))
    return dict(zip(columns, (missing / array.rows).tolist(), strict=True))


def write_values(
    path: Path, columns: Sequence[Path], fields: Sequence[Field], rows: int, kept: Path | None = None
) -> dict[str, float]:
    """Write a split's normalized numbers, float32 (rows, numeric fields), and return the missing share by field.

    A missing number is NaN if its field has a missing vector, and otherwise 0.

    Args:
        path: The file to write.
        columns: The file with the numbers of each numeric field.
        fields: The numeric fields, as returned by measure().
        rows: The number of rows to write.
        kept: See read_rows().
    """
    numbers = Numbers(fields)
    missing = np.zeros(len(fields))
    with GrowingArray(path, np.float32, len(fields)) as array:
        if not fields:
            array.append(np.empty((rows, 0)))
            return {}
        for chunk in read_rows(columns, kept):
            values = np.stack(chunk, axis=1)
            missing += np.isnan(values).sum(0)
            array.append(numbers.normalize(values))
    return dict(zip([field.name for field in fields], (missing / rows).tolist(), strict=True))
