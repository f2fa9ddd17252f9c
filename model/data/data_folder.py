"""The --data argument of every command that reads or writes a log."""

import argparse
import os
from pathlib import Path


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add --data DIR, in which an experiment's paths begin. The default is $CTR_DATA, or else ./data."""
    default = Path(os.environ.get("CTR_DATA") or "data")
    text = "the folder in which the experiment's paths begin (default: $CTR_DATA, or ./data)"
    parser.add_argument("--data", type=Path, metavar="DIR", default=default, help=text)
