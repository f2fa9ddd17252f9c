"""The --data argument, which every command that reads or writes a log has."""

import argparse
import os
from pathlib import Path


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add --data DIR, the base folder for an experiment's relative paths. The default is $CTR_DATA, or else ./data."""
    default = Path(os.environ.get("CTR_DATA") or "data")
    text = "the base folder for the experiment's relative paths (default: $CTR_DATA, or ./data)"
    parser.add_argument("--data", type=Path, metavar="DIR", default=default, help=text)
