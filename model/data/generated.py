"""The log that `python -m model.data.generate` writes."""

from pathlib import Path

from contract.schema import Field
from model.data.log import SPLITS, Log, check_label, read_parquet
from model.experiment import Data

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
    way_out = f"Make it with: python -m model.data.generate --data {folder.parent}"
    extra = (REQUEST, TRUE_CTR)
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        splits[split] = read_parquet(path, [LABEL, *CONTEXT, *CANDIDATE, *extra], way_out)
        check_label(path, splits[split][LABEL])
    return Log(fields(), LABEL, splits, extra)


def fields() -> tuple[Field, ...]:
    context = [Field(name, "context", "numeric" if name in NUMERIC else "categorical") for name in CONTEXT]
    candidate = [Field(name, "candidate", "numeric" if name in NUMERIC else "categorical") for name in CANDIDATE]
    return (*context, *candidate)
