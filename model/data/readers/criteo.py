"""Criteo: display ads, 13 counts and 26 hashed categories, none of which has a name.

Which columns describe the ad is not published. We take C14 to C26 as the candidate's, all others as the context's: a
convention, so that a request has both sides. With attention = "full" it changes no prediction. An experiment may say
otherwise, column by column: [[data.fields]] name = "C3", side = "candidate".
"""

from pathlib import Path

from contract.schema import Field
from model.data.readers.log import Log, declared, scan_text
from model.data.readers.published import find, find_splits, scan_table
from model.data.readers.split import split_by_row
from model.data_config import Data

LABEL = "label"
NUMBERS = tuple(f"I{n}" for n in range(1, 14))
CATEGORIES = tuple(f"C{n}" for n in range(1, 27))
CANDIDATE = CATEGORIES[13:]
COLUMNS = (LABEL, *NUMBERS, *CATEGORIES)
PUBLISHED = "It is Kaggle's Criteo Display Advertising Challenge (2014): tab-separated, without a header"
PUBLISHED_X1 = "Criteo_x1 is published at huggingface.co/datasets/reczoo/Criteo_x1"


def read(folder: Path, data: Data) -> Log:
    """Reads train.txt or train.txt.gz as Criteo published it, tab-separated, an empty value is missing, and splits it.

    Raises:
        ValueError: naming the file, for a missing one; and the line that has another number of columns.
    """
    path = find(folder, ["train.txt", "train.txt.gz"], PUBLISHED)
    splits = split_by_row(scan_text(path, separator="\t", names=COLUMNS), data.split_seed)
    return Log(declared(_fields(), data), LABEL, splits, dict.fromkeys(splits, path))


def read_x1(folder: Path, data: Data) -> Log:
    """Reads Criteo_x1's {train,valid,test}.csv: AFN's split, ids and scaled numbers as published.

    Raises:
        ValueError: naming the file, for a missing one, or a missing column.
    """
    paths = find_splits(folder, ["{}.csv", "{}.csv.gz"], PUBLISHED_X1)
    splits = {split: scan_table(path, COLUMNS) for split, path in paths.items()}
    return Log(declared(_fields(), data), LABEL, splits, paths)


def _fields() -> list[Field]:
    numbers = [Field(name, "context", "numeric") for name in NUMBERS]
    return numbers + [Field(name, "candidate" if name in CANDIDATE else "context") for name in CATEGORIES]
