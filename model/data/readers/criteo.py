"""The reader for Criteo: display ads with 13 counts and 26 hashed categories, whose meaning is not published.

Criteo did not publish which columns describe the ad. By convention, we assign C14 to C26 to the candidate and all
others to the context, so that a request has both sides. With attention = "full", this choice does not affect
predictions. An experiment can change the side of each column, for example with [[data.fields]] name = "C3",
side = "candidate".
"""

from pathlib import Path

from contract.schema import Field
from model.data.readers.log import Log
from model.data.readers.published import find, read_splits, split_file
from model.data.readers.scan import open_text
from model.data.readers.text import TextFormat
from model.data_config import Data

LABEL = "label"
NUMBERS = tuple(f"I{n}" for n in range(1, 14))
CATEGORIES = tuple(f"C{n}" for n in range(1, 27))
CANDIDATE = CATEGORIES[13:]
COLUMNS = (LABEL, *NUMBERS, *CATEGORIES)
FIELDS = (
    *(Field(name, "context", "numeric") for name in NUMBERS),
    *(Field(name, "candidate" if name in CANDIDATE else "context") for name in CATEGORIES),
)
PUBLISHED = (
    "The file is from Kaggle's Criteo Display Advertising Challenge (2014): tab-separated text without a header."
)
PUBLISHED_X1 = "Criteo_x1 is published at huggingface.co/datasets/reczoo/Criteo_x1."


def read(folder: Path, data: Data) -> Log:
    """Return the log in train.txt or train.txt.gz as published by Criteo, split into train, valid and test.

    The file is tab-separated and has no header. Empty values are missing.

    Raises:
        ValueError: If the file is missing, or a line has too few or too many columns.
    """
    source = find(folder, ["train.txt", "train.txt.gz"], PUBLISHED)
    return split_file(open_text(source, TextFormat("\t", "", COLUMNS)), LABEL, FIELDS, data)


def read_x1(folder: Path, data: Data) -> Log:
    """Return the log in Criteo_x1's {train,valid,test}.csv, which has AFN's split, ids and scaled numbers.

    Raises:
        ValueError: If a file or a column is missing.
    """
    return read_splits(folder, ["{}.csv", "{}.csv.gz"], LABEL, FIELDS, data, PUBLISHED_X1)
