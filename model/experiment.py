"""An experiment's TOML file, typed: a misspelt key is an error, not a default."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from contract.schema import Attention

Positive = Annotated[int, Meta(gt=0)]
Rate = Annotated[float, Meta(ge=0, lt=1)]


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the log lies and what its columns mean. Paths are relative to `--data`.

    reader: who knows the log's columns; only "table" needs the keys from `train` to `numeric`.
    folder: the raw log. prepared: where ctr-prepare writes and ctr-train reads.
    min_count: a token seen less often in train gets the unknown id.
    negative_rate: the share of the negatives that the log kept; the bundle's calibration undoes it.
    """

    reader: Literal["frappe", "generated", "table"]
    folder: str
    prepared: str
    min_count: Positive = 1
    negative_rate: Annotated[float, Meta(gt=0, le=1)] = 1.0
    train: str = ""
    valid: str = ""
    test: str = ""
    label: str = "label"
    context: tuple[str, ...] = ()
    candidate: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        own_table = bool(self.train or self.valid or self.test or self.context or self.candidate or self.numeric)
        if self.reader == "table":
            if not (self.train and self.valid and self.test and self.context and self.candidate):
                raise ValueError('reader = "table" needs train, valid, test, context and candidate')
            strangers = set(self.numeric) - {*self.context, *self.candidate}
            if strangers:
                raise ValueError(f"numeric field {min(strangers)!r} is in neither context nor candidate")
        elif own_table:
            raise ValueError(f'reader = "{self.reader}" knows its files and columns: remove those keys, or use "table"')


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """STEC's size. mlp: the head's hidden layers; none is one linear layer, the form that trains and serves fast.

    attention: whom a context field attends to: all fields ("full", the paper's), or context fields only ("request"),
    which lets the server compute the whole context once per request. Candidate fields attend to all either way.
    """

    embedding: Positive = 16
    blocks: Positive = 2
    heads: Positive = 2
    ffn: Positive = 64
    mlp: tuple[Positive, ...] = ()
    attention: Attention = "full"
    dropout: Rate = 0.0
    embedding_std: Annotated[float, Meta(gt=0)] = 0.01

    def __post_init__(self) -> None:
        if self.embedding % self.heads:
            raise ValueError(f"embedding = {self.embedding} cannot be split into heads = {self.heads}")


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The recipe of section 4.1.5, and what it leaves open.

    monitor: what must improve on valid; if it does not, the learning rate falls to a tenth at once,
    and after `patience` such epochs in a row training stops.
    embedding_l2, net_l2: (l2 / 2) times the squared norm of all embeddings, and of all other weights.
    unknown_rate: the share of tokens, per field, that training replaces by the unknown id, and in a
    field that the log never lacks, as many again by the missing one.
    """

    epochs: Positive = 50
    batch_size: Annotated[int, Meta(ge=2)] = 4096
    learning_rate: Annotated[float, Meta(gt=0)] = 1e-3
    monitor: Literal["logloss", "auc"] = "logloss"
    patience: Positive = 2
    embedding_l2: Annotated[float, Meta(ge=0)] = 0.0
    net_l2: Annotated[float, Meta(ge=0)] = 0.0
    clip: Annotated[float, Meta(gt=0)] = 10.0
    unknown_rate: Rate = 0.01
    seed: int = 1


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    data: Data
    model: Model = Model()
    training: Training = Training()


def read_experiment(path: Path) -> Experiment:
    """Raises ValueError, with the file's name and the key, for an unknown key or a value out of range."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Experiment)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such experiment file") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
