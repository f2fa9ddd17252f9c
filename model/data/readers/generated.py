"""The log that `python -m model.data.synthetic.generate` writes."""

from pathlib import Path

from contract.schema import Field
from model.data.readers.log import SPLITS, Log, declared, scan_parquet
from model.data_config import Data

LABEL = "click"
REQUEST = "request"  # which request a row was shown in
TRUE_CTR = "true_ctr"  # what `click` was drawn from: never a feature
CONTEXT = (
    "user",
    "age_band",
    "country",
    "device",
    "slot",
    "hour",
    "weekday",
    "private_mode",
    "exchange",
    "session_depth",
)
CANDIDATE = ("ad", "campaign", "advertiser", "category", "format", "language", "sensitive", "bid")
NUMERIC = ("session_depth", "bid")


def read(folder: Path, data: Data) -> Log:
    """Reads {train,valid,test}.parquet, and carries the true probabilities of `test` along.

    Raises:
        ValueError: naming the file and the command that makes it.
    """
    # The log lies at DIR/<data.folder>, and generate takes that DIR.
    way_out = f"Make it with: python -m model.data.synthetic.generate --data {folder.parent}"
    extra = (REQUEST, TRUE_CTR)
    paths = {split: folder / f"{split}.parquet" for split in SPLITS}
    columns = [LABEL, *CONTEXT, *CANDIDATE, *extra]
    splits = {split: scan_parquet(path, columns, way_out) for split, path in paths.items()}
    return Log(declared(fields(), data), LABEL, splits, paths, extra)


def fields() -> tuple[Field, ...]:
    context = [Field(name, "context", "numeric" if name in NUMERIC else "categorical") for name in CONTEXT]
    candidate = [Field(name, "candidate", "numeric" if name in NUMERIC else "categorical") for name in CANDIDATE]
    return (*context, *candidate)
