"""A prepared log on disk, which ctr-prepare writes and ctr-train reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.bundle import SCHEMA, VOCABULARY
from contract.schema import FeatureSchema, read_schema
from contract.vocabulary import open_vocabulary
from model.data_config import Data, with_data_defaults

LOG = "log.json"


class SplitFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The size and click rate of a split.

    Attributes:
        rows: The number of prepared rows.
        click_rate: Their click rate.
        period: The times of the oldest and the newest row in UTC, such as "2026-12-01T00:00:05Z", if the log is split
            by time.
        dropped: The number of non-clicks that Data.train_negative_rate dropped. They are not among the rows.
    """

    rows: int
    click_rate: float
    dropped: int = 0
    period: tuple[str, str] | None = None

    @property
    def clicks(self) -> int:
        """The number of clicks."""
        return round(self.rows * self.click_rate)


class LogFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of log.json.

    Attributes:
        data: The [data] section that the log was prepared with.
        missing: The share of missing values in the training set, by field.
        splits: The facts about each split (see SPLITS).
        sentinels: For each field, the numbers that probably mean "missing" (see sentinels.find_sentinels), with the
            share of training rows that contain each.
    """

    data: Data
    missing: dict[str, float]
    splits: dict[str, SplitFacts]
    sentinels: dict[str, dict[str, float]] = {}


@dataclass(frozen=True)
class Prepared:
    """A prepared log.

    Attributes:
        folder: The folder.
        schema: The fields.
        vocabulary_sizes: The number of ids of each categorical field, including ids 0 and 1, in the schema's order.
        facts: What ctr-prepare measured.
    """

    folder: Path
    schema: FeatureSchema
    vocabulary_sizes: tuple[int, ...]
    facts: LogFacts

    @property
    def vocabulary(self) -> Path:
        """The folder with <field>.marisa and <field>.ids.npy, in the same format as in a bundle."""
        return self.folder / VOCABULARY

    def split(self, name: str) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """Return the arrays of a split.

        Returns:
            ids int32 (rows, categorical fields), memory-mapped; normalized values float32 (rows, numeric fields),
            memory-mapped; labels float32 (rows), 0 or 1.

        Raises:
            ValueError: If a file is damaged or has the wrong shape. The message names the file.
        """
        labels = self._load(f"{name}.labels.npy", np.uint8, ())
        ids = self._load(f"{name}.ids.npy", np.int32, (len(self.vocabulary_sizes),))
        values = self._load(f"{name}.values.npy", np.float32, (len(self.schema.select("numeric")),))
        if not len(labels) == len(ids) == len(values):
            raise ValueError(
                f"{self.folder}: the files of {name} have different numbers of rows. Run ctr-prepare again."
            )
        return ids, values, labels.astype(np.float32)

    def weights(self, split: str) -> NDArray[np.float32] | None:
        """Return the weight of each row, float32 (rows), memory-mapped, or None if the log has no weights."""
        return self._row_column(split, "weights", np.float32)

    def units(self, split: str) -> NDArray[np.int32] | None:
        """Return the code of each row's unit, int32 (rows), memory-mapped, or None if the log has no units.

        All splits use the same codes. A row without a unit is its own unit, with a negative code.
        """
        return self._row_column(split, "units", np.int32)

    def requests(self, split: str) -> NDArray[np.int32] | None:
        """Return the code of each row's request, in the same form as units(), or None if the log has no requests."""
        return self._row_column(split, "requests", np.int32)

    def positions(self, split: str) -> NDArray[np.int32] | None:
        """Return the position of each row, int32 (rows), -1 if missing, memory-mapped, or None without positions."""
        return self._row_column(split, "positions", np.int32)

    def _row_column(self, split: str, kind: str, dtype: type) -> NDArray[Any] | None:
        if not (self.folder / f"{split}.{kind}.npy").exists():
            return None
        column = self._load(f"{split}.{kind}.npy", dtype, ())
        if len(column) != (rows := self.facts.splits[split].rows):
            raise ValueError(
                f"{self.folder / f'{split}.{kind}.npy'} has {len(column):,} rows instead of {rows:,}. Run ctr-prepare "
                "again."
            )
        return column

    def column(self, split: str, name: str) -> NDArray[Any]:
        """Return a column, (rows), that the reader kept although it is not a feature.

        Raises:
            ValueError: If the log has no such column.
        """
        return self._load(f"{split}.{name}.npy")

    def _load(self, file: str, dtype: type | None = None, columns: tuple[int, ...] | None = None) -> NDArray[Any]:
        """Load an array, and check its type and the shape of its rows if these are given."""
        try:
            array: NDArray[Any] = np.load(self.folder / file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{self.folder / file}: {error}. Run ctr-prepare again.") from error
        if (dtype is not None and array.dtype != dtype) or (columns is not None and array.shape[1:] != columns):
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(
                f"{self.folder / file}: found {found}, which ctr-prepare did not write. Run ctr-prepare again."
            )
        return array


def read_prepared(folder: Path) -> Prepared:
    """Open a prepared log.

    Raises:
        ValueError: If the folder was not written by ctr-prepare, or a file is missing. The message names the folder.
    """
    if not (folder / SCHEMA).is_file():
        raise ValueError(f"{folder}: not a prepared log. Create it with: ctr-prepare EXPERIMENT.toml --data DIR")
    try:
        schema = read_schema(folder / SCHEMA)
        stored = msgspec.json.decode((folder / LOG).read_bytes(), type=dict[str, Any])
        facts = msgspec.convert(stored | {"data": with_data_defaults(stored["data"])}, LogFacts)
        names = [field.name for field in schema.select("categorical")]
        sizes = tuple(len(open_vocabulary(folder / VOCABULARY, name)) for name in names)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: {error}. Run ctr-prepare again.") from error
    return Prepared(folder, schema, sizes, facts)
