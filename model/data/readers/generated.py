"""The reader for the synthetic log that `python -m model.data.synthetic.generate` writes."""

from pathlib import Path

from contract.schema import Field
from model.data.readers.log import Log
from model.data.readers.published import read_splits
from model.data_config import Data

LABEL = "click"
REQUEST = "request"  # the request in which a row was shown
TRUE_CTR = "true_ctr"  # the probability that `click` was sampled with; not a feature
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
FIELDS = tuple(
    Field(name, "context" if name in CONTEXT else "candidate", "numeric" if name in NUMERIC else "categorical")
    for name in (*CONTEXT, *CANDIDATE)
)


def read(folder: Path, data: Data) -> Log:
    """Return the log in {train,valid,test}.parquet, with two extra columns of `test`: request and true_ctr.

    Raises:
        ValueError: If a file is missing. The message contains the command that creates it.
    """
    # The log is in DIR/<data.folder>, but the generator expects DIR.
    hint = f"Create it with: python -m model.data.synthetic.generate --data {folder.parent}"
    return read_splits(folder, ["{}.parquet"], LABEL, FIELDS, data, hint, extra=(REQUEST, TRUE_CTR))
