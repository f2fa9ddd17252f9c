"""Which steps of a day are complete, and the digests that prove it."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from contract.regular_file import read_regular_file
from model.atomic_folder import write_whole

FORMAT = 1
MAX_BYTES = 64 * 1024 * 1024
TOO_FEW_CLICKS = 3  # the exit code of ctr-calibrate if it wrote no calibration


class DoneStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A complete step.

    Attributes:
        command: Its command line.
        inputs: SHA-256 over its arguments and over everything that it read.
        outputs: SHA-256 of each file that it wrote, by its path.
        seconds: How long it took.
        code: Its exit code. Some codes other than 0 are results (see steps.py).
    """

    command: str
    inputs: str
    outputs: dict[str, str]
    seconds: float
    code: int = 0


class State(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The content of state.json.

    Attributes:
        format: The version of this format.
        served: The version that the store served when the day began, or "".
        steps: The complete steps, in their order.
    """

    format: int = FORMAT
    served: str = ""
    steps: dict[str, DoneStep] = {}


def read_state(path: Path) -> State:
    """Return the state of a day. A day that has not begun has an empty one.

    Raises:
        ValueError: The file is damaged or was written by another version. The message says what to do.
    """
    try:
        state = msgspec.json.decode(read_regular_file(path, MAX_BYTES), type=State)
    except FileNotFoundError:
        return State()
    except (ValueError, RecursionError) as error:  # msgspec.DecodeError and UnicodeDecodeError, too
        raise ValueError(f"{path} cannot be read ({error}). Delete it to run the day from the beginning.") from error
    if state.format != FORMAT:
        raise ValueError(f"{path} has format {state.format}, but this version reads {FORMAT}. Delete it.")
    return state


def write_state(path: Path, state: State) -> None:
    """Replace the state of a day atomically."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its path. A folder stands for all files in it. Missing paths are left out."""
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return {str(file): file_digest(file) for file in files if file.is_file()}


def inputs_digest(arguments: Sequence[str], files: Mapping[str, str], earlier: Sequence[DoneStep]) -> str:
    """Return the SHA-256 over what a step reads.

    Args:
        arguments: Its arguments.
        files: Digests of files that no earlier step wrote.
        earlier: The steps whose outputs it reads.
    """
    parts = (list(arguments), dict(files), [step.outputs for step in earlier])
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def is_complete(step: DoneStep, inputs: str) -> bool:
    """Return whether a step has read the same inputs, and all files that it wrote are unchanged."""
    return step.inputs == inputs and all(
        Path(path).is_file() and file_digest(Path(path)) == digest for path, digest in step.outputs.items()
    )
