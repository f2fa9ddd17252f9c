"""Write predictions batch by batch to a Parquet, CSV or TSV file. The file appears whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from model.atomic_folder import new_file

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"


class Output:
    """A file of predictions that is being written."""

    def __init__(self, target: Path, scratch: Path) -> None:
        """Start a file.

        Args:
            target: The file to write. Its suffix determines the format.
            scratch: A temporary file for its content.
        """
        self._suffix = target.suffix
        self._path = scratch
        self._parts: list[Path] = []
        self._text = None if self._suffix == PARQUET else scratch.open("wb")

    def append(self, rows: pl.DataFrame) -> None:
        """Append rows."""
        if self._text is not None:
            is_first = self._text.tell() == 0
            rows.write_csv(self._text, separator=DELIMITERS[self._suffix], include_header=is_first)
            return
        self._parts.append(self._path.with_name(f"part-{len(self._parts):08}.parquet"))
        rows.write_parquet(self._parts[-1])

    def close(self) -> None:
        """Close the file. Do nothing if it is already closed."""
        if self._text is not None:
            self._text.close()

    def finish(self) -> None:
        """Complete the file. A Parquet file is assembled from parts, because Polars cannot append to one."""
        self.close()
        if self._parts:
            pl.scan_parquet(self._parts, glob=False).sink_parquet(self._path)


def check_output(path: Path, inputs: list[Path]) -> None:
    """Check that predictions can be written to a file.

    Raises:
        ValueError: If the format is not known, or the file is one of the inputs.
    """
    if path.suffix not in (PARQUET, *DELIMITERS):
        raise ValueError(f"{path}: unknown format. Use .parquet, .csv or .tsv.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Choose a file.")
    if any(path.resolve() == each.resolve() for each in inputs):
        raise ValueError(f"{path} is one of the files to score. Choose a different file.")


def check_types(path: Path, schema: pl.Schema) -> None:
    """Check that columns can be written to a file.

    Raises:
        ValueError: If the file is a text file and a column has values that text cannot represent.
    """
    for name, dtype in schema.items():
        if path.suffix != PARQUET and (dtype.is_nested() or dtype in (pl.Binary, pl.Object)):
            raise ValueError(
                f"--keep {name}: the column has the type {dtype}, which {path.suffix} files cannot hold. Write a "
                ".parquet file instead."
            )


@contextmanager
def new_output(path: Path) -> Iterator[Output]:
    """Yield a file of predictions, which replaces `path` if the block succeeds.

    Raises:
        ValueError: If polars cannot write the rows.
    """
    with new_file(path) as scratch:
        output = Output(path, scratch)
        try:
            yield output
            output.finish()
        except pl.exceptions.PolarsError as error:
            raise ValueError(f"{path}: cannot be written: {error}") from error
        finally:
            output.close()
