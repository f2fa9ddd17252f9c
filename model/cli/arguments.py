"""Arguments and exit codes shared by several commands."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PSEUDONYM_KEY_HELP = """the key of the fields with pseudonym = "hmac"; default: the file that CTR_PSEUDONYM_KEY_FILE
names"""
INTERRUPTED = 130  # the exit code that shells use after Ctrl-C
DEVICE_HELP = """where to train: cpu (the default), cuda or cuda:N. A GPU uses another random number generator and adds
numbers in a different order each time, so the same seed does not reproduce a CPU run"""


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device, which argparse converts to a torch.device."""
    parser.add_argument("--device", type=device, default="cpu", help=DEVICE_HELP)


def add_pseudonym_key_argument(parser: argparse.ArgumentParser) -> None:
    """Add --pseudonym-key, which overrides CTR_PSEUDONYM_KEY_FILE (see contract.pseudonyms.open_pseudonymizer())."""
    parser.add_argument("--pseudonym-key", type=Path, metavar="FILE", help=PSEUDONYM_KEY_HELP)


def device(name: str) -> "torch.device":
    """Return the torch device with this name. For argparse, whose error message includes the flag.

    Raises:
        argparse.ArgumentTypeError: If this machine has no such device.
    """
    from model.training.device import find_device

    try:
        return find_device(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive_int(text: str) -> int:
    """Parse an integer that is at least 1. For argparse.

    Raises:
        argparse.ArgumentTypeError: If the number is less than 1.
    """
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def positive_minutes(text: str) -> float:
    """Parse a number of minutes above 0. For argparse.

    Raises:
        argparse.ArgumentTypeError: If the number is not above 0 or not finite.
    """
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes above 0")
    return number


def duration_s(text: str) -> int:
    """Parse a duration such as 30m, and return it in seconds. For argparse.

    Raises:
        argparse.ArgumentTypeError: If the text is not a duration.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not (number.isascii() and number.isdigit()) or len(number) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 30m, 24h or 7d")
    return int(number) * units[unit]
