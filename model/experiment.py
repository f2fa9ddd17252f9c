"""An experiment's TOML file, typed: a misspelt key is an error, not a default."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta

from contract.schema import Attention, Field, Kind, Side

Positive = Annotated[int, Meta(gt=0)]
Rate = Annotated[float, Meta(ge=0, lt=1)]


class FieldSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a user says of one field; what is left out is the reader's choice, and else the default.

    side: needed for reader = "table" alone. missing: values that mean that there is none. min_count: instead of the
    log's. transform: "log_square" makes a category of a number, as Criteo's winners did; see contract/tokens.py.
    """

    name: str
    side: Side | None = None
    kind: Kind | None = None
    missing: tuple[str, ...] | None = None
    min_count: Positive | None = None
    transform: Literal["none", "log_square"] | None = None

    def apply(self, field: Field) -> Field:
        """The field as this wants it."""
        kind = self.kind or field.kind
        transform = field.transform if self.transform is None else self.transform
        return Field(
            self.name,
            self.side or field.side,
            kind,
            missing=field.missing if self.missing is None else self.missing or UNSET,
            transform=UNSET if transform == "none" else transform,
        )


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the log lies and what its columns mean. Paths are relative to `--data`.

    reader: who knows the log's columns; only "table" needs the keys from `train` to `numeric`, or `fields` in place of
    `context`, `candidate` and `numeric`. fields: to another reader, what to do differently with some of its fields.
    columns: the names of a text file's columns, where it has no header line.
    folder: the raw log. prepared: where ctr-prepare writes and ctr-train reads.
    min_count: a token seen less often in train gets the unknown id.
    negative_rate: the share of the negatives that the log kept; the bundle's calibration undoes it.
    split, split_seed: of a log that is published in one piece, by a draw for each row, or by day ("time") where its
    reader knows the day.
    vocabulary: a folder of vocabularies to use as they are, instead of counting: see model/data/fuxictr.py.
    """

    reader: Literal[
        "avazu",
        "avazu_x1",
        "criteo",
        "criteo_x1",
        "frappe",
        "frappe_x1",
        "generated",
        "movielens_1m",
        "movielens_latest_x1",
        "movielens_tag",
        "table",
    ]
    folder: str
    prepared: str
    min_count: Positive = 1
    negative_rate: Annotated[float, Meta(gt=0, le=1)] = 1.0
    split: Literal["row", "time"] = "row"
    split_seed: int = 1
    train: str = ""
    valid: str = ""
    test: str = ""
    label: str = "label"
    context: tuple[str, ...] = ()
    candidate: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    fields: tuple[FieldSpec, ...] = ()
    columns: tuple[str, ...] = ()
    vocabulary: str = ""

    def min_count_of(self, name: str) -> int:
        """Of one field."""
        own = [spec.min_count for spec in self.fields if spec.name == name]
        return (own[0] if own else None) or self.min_count

    def __post_init__(self) -> None:
        if self.split == "time" and self.reader != "avazu":
            raise ValueError(f'reader = "{self.reader}" knows no time: split = "time" is for "avazu"')
        names = [spec.name for spec in self.fields]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"fields names {twice[0]!r} twice: say all of a field in one place")
        listed = {*self.context, *self.candidate}
        if self.reader == "table":
            self._check_table(listed)
        elif self.train or self.valid or self.test or self.numeric or self.columns or listed:
            raise ValueError(f'reader = "{self.reader}" knows its files and columns: remove those keys, or use "table"')

    def _check_table(self, listed: set[str]) -> None:
        declared = {spec.side for spec in self.fields}
        both = (self.context or "context" in declared) and (self.candidate or "candidate" in declared)
        if not (self.train and self.valid and self.test and both):
            raise ValueError(
                'reader = "table" needs train, valid, test, context and candidate, or fields that have these sides'
            )
        if strangers := set(self.numeric) - listed:
            raise ValueError(f"numeric field {min(strangers)!r} is in neither context nor candidate")
        for spec in self.fields:
            if spec.name not in listed and spec.side is None:
                raise ValueError(f'field {spec.name!r} needs its side: side = "context" or side = "candidate"')


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """STEC's size, and how it reads the paper where the paper leaves it open: docs/decisions/0008-model-options.md.

    ffn: its hidden units; 0 leaves out the sub-layer and its norm. dropout: the encoder's.
    mlp: the head's hidden layers; none is one linear layer, the form that trains and serves fast. mlp_batch_norm,
    mlp_dropout: of the hidden layers.
    attention: whom a context field attends to: all fields ("full", the paper's), or context fields only ("request"),
    which lets the server compute the whole context once per request. Candidate fields attend to all either way.
    pairs: the pairs of fields that the head sees: all ordered ones, i < j ("upper"), or i <= j ("upper_diag").
    scale: a score is the interaction's sum over a head's width K, divided by sqrt(K) or by K ("mean").
    interaction: of fields i and j: q_i * k_j ("qk"); x_i * W x_j ("xwx"), W one matrix a head; or the same from a layer
    of its own beside an attention that has its own q and k ("separate").
    fusion: the head sees all levels behind each other ("concat"), their sum ("add"), or one level ("last").
    last: which one: the standalone layer's, or the last block's ("block").
    """

    embedding: Positive = 16
    blocks: Positive = 2
    heads: Positive = 2
    ffn: Annotated[int, Meta(ge=0)] = 64
    mlp: tuple[Positive, ...] = ()
    mlp_batch_norm: bool = False
    mlp_dropout: Rate = 0.0
    attention: Attention = "full"
    pairs: Literal["full", "upper", "upper_diag"] = "full"
    scale: Literal["sqrt", "mean"] = "sqrt"
    interaction: Literal["qk", "xwx", "separate"] = "qk"
    fusion: Literal["concat", "add", "last"] = "concat"
    last: Literal["layer", "block"] = "layer"
    dropout: Rate = 0.0
    embedding_std: Annotated[float, Meta(gt=0)] = 0.01

    def __post_init__(self) -> None:
        if self.embedding % self.heads:
            raise ValueError(f"embedding = {self.embedding} cannot be split into heads = {self.heads}")
        self._check_head()
        self._check_last()

    def _check_head(self) -> None:
        for key, value, unset in (("mlp_batch_norm", "true", False), ("mlp_dropout", self.mlp_dropout, 0.0)):
            if getattr(self, key) != unset and not self.mlp:
                raise ValueError(f"{key} = {value} is of hidden layers: give some in mlp, or remove {key}")

    def _check_last(self) -> None:
        if self.last == "block" and self.fusion != "last":
            raise ValueError(f'last = "block" says nothing with fusion = "{self.fusion}": set fusion = "last"')
        if self.last == "block" and self.blocks == 1:
            raise ValueError('last = "block" with blocks = 1 leaves no attention: set blocks = 2, or last = "layer"')
        if self.interaction == "separate" and self.fusion == "last" and self.last == "layer":
            raise ValueError(
                'interaction = "separate" with fusion = "last" and last = "layer" leaves no block an interaction: '
                'it is interaction = "qk", or set last = "block"'
            )


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


File = TypeVar("File", bound=msgspec.Struct)


class _DataAlone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An experiment's file, of which only [data] is there or matters."""

    data: Data
    name: str = ""
    model: Model = Model()
    training: Training = Training()


def read_experiment(path: Path) -> Experiment:
    """Raises ValueError, with the file's name and the key, for an unknown key or a value out of range."""
    return read_toml(path, Experiment)


def read_data(path: Path) -> Data:
    """The [data] section, of an experiment or of a file with nothing else. Raises ValueError as read_experiment()."""
    return read_toml(path, _DataAlone).data


def read_toml(path: Path, kind: type[File], what: str = "experiment") -> File:
    """Raises ValueError, with the file's name, for one that is not there or is no `kind`."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such {what} file") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
