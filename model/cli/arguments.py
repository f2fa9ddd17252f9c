"""Arguments and exit codes that several commands share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

INTERRUPTED = 130  # the exit code that shells use after Ctrl-C
DEVICE_HELP = """where to train: cpu (the default), cuda or cuda:N. A GPU uses another random number generator and adds
in a different order each time, so a seed does not reproduce a CPU run there"""


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device, which argparse converts to a torch.device."""
    parser.add_argument("--device", type=device, default="cpu", help=DEVICE_HELP)


def device(name: str) -> "torch.device":
    """Return the torch device of this name. For argparse, which reports an error with the flag's name.

    Raises:
        argparse.ArgumentTypeError: If this machine has no such device.
    """
    from model.training.device import find_device

    try:
        return find_device(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive_int(text: str) -> int:
    """Return a whole number that is at least 1. For argparse.

    Raises:
        argparse.ArgumentTypeError: If the number is less than 1.
    """
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
