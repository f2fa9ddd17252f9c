"""A prepared log on disk: what ctr-prepare writes and ctr-train reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from contract.bundle import SCHEMA, VOCABULARY
from contract.schema import FeatureSchema, read_schema
from contract.vocabulary import open_vocabulary
from model.data_config import Data

LOG = "log.json"


class SplitFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: int
    click_rate: float


class LogFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What prepare read, by which [data] section. missing: field -> share of train's rows."""

    data: Data
    missing: dict[str, float]
    splits: dict[str, SplitFacts]


@dataclass(frozen=True)
class Prepared:
    """An opened folder. vocabulary_sizes: for each categorical field in schema order, ids 0 and 1 included."""

    folder: Path
    schema: FeatureSchema
    vocabulary_sizes: tuple[int, ...]
    facts: LogFacts

    @property
    def vocabulary(self) -> Path:
        """The folder with <field>.marisa and <field>.ids.npy, as a bundle takes it."""
        return self.folder / VOCABULARY

    def split(self, name: str) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """ids int32 [rows, categorical fields], memory-mapped; values float32 [rows, numeric fields],
        normalised, memory-mapped; labels float32 [rows], 0 or 1.

        Raises:
            ValueError: naming the file, for one that is damaged or of another shape.
        """
        labels = self._load(f"{name}.labels.npy", np.uint8, ())
        ids = self._load(f"{name}.ids.npy", np.int32, (len(self.vocabulary_sizes),))
        values = self._load(f"{name}.values.npy", np.float32, (len(self.schema.select("numeric")),))
        if not len(labels) == len(ids) == len(values):
            raise ValueError(f"{self.folder}: {name}'s files have different numbers of rows: run ctr-prepare again")
        return ids, values, labels.astype(np.float32)

    def column(self, split: str, name: str) -> NDArray[Any]:
        """One of the columns that the log's reader carries along, [rows].

        Raises:
            ValueError: when the log has no such column.
        """
        return self._load(f"{split}.{name}.npy")

    def _load(self, file: str, kind: type | None = None, columns: tuple[int, ...] | None = None) -> NDArray[Any]:
        """kind, columns: what the array must be of; None is anything."""
        try:
            array: NDArray[Any] = np.load(self.folder / file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{self.folder / file}: {error}: run ctr-prepare again") from error
        if (kind is not None and array.dtype != kind) or (columns is not None and array.shape[1:] != columns):
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{self.folder / file}: {found} is not what was written: run ctr-prepare again")
        return array


def read_prepared(folder: Path) -> Prepared:
    """Raises ValueError, naming the folder, when ctr-prepare has not written it or it is not whole."""
    if not (folder / SCHEMA).is_file():
        raise ValueError(f"{folder}: no prepared log. Make it with: ctr-prepare EXPERIMENT.toml --data DIR")
    try:
        schema = read_schema(folder / SCHEMA)
        facts = msgspec.json.decode((folder / LOG).read_bytes(), type=LogFacts)
        names = [field.name for field in schema.select("categorical")]
        sizes = tuple(len(open_vocabulary(folder / VOCABULARY, name)) for name in names)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: {error}: run ctr-prepare again") from error
    return Prepared(folder, schema, sizes, facts)
