"""Where the logs lie: the same argument for every command that reads or writes them."""

import argparse
import os
from pathlib import Path


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """--data DIR, in which an experiment's paths begin: CTR_DATA, else ./data."""
    default = Path(os.environ.get("CTR_DATA") or "data")
    text = "where the experiment's paths begin (default: CTR_DATA, or ./data)"
    parser.add_argument("--data", type=Path, metavar="DIR", default=default, help=text)
