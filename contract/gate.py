"""The report of ctr-gate, as far as other programs read it: whether a new version may replace an old one."""

from pathlib import Path
from typing import Literal

import msgspec

from contract.regular_file import read_regular_file

FORMAT = 1
MAX_BYTES = 256 * 1024 * 1024  # Each --by may have 10,000 values.
Verdict = Literal["pass", "fail", "not enough clicks"]


class GateReport(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a gate report (.json) that decides. The rest of the file is for people.

    Attributes:
        format: The version of this format.
        verdict: "pass" if the new version is not worse than the old one by more than the margin.
        reasons: Why the verdict is not "pass", one sentence each.
        new: The version of the new bundle, or "run:NAME" for a run, which has no version.
        old: The version of the old bundle, or the same.
    """

    format: int
    verdict: Verdict
    reasons: tuple[str, ...]
    new: str
    old: str


def read_gate_report(path: Path) -> GateReport:
    """Read a gate report.

    Raises:
        ValueError: The file cannot be read, or it is not a gate report of this format. The message names the file.
    """
    return parse_gate_report(path, read_gate_bytes(path))


def read_gate_bytes(path: Path) -> bytes:
    """Return the content of a file that should be a gate report. Raises ValueError as read_gate_report() does."""
    try:
        return read_regular_file(path, MAX_BYTES)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}. Create the report with: ctr-gate NEW OLD JOINED") from error


def parse_gate_report(path: Path, content: bytes) -> GateReport:
    """Return the gate report that a file contains. Raises ValueError as read_gate_report() does."""
    try:
        report = msgspec.json.decode(content, type=GateReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a report of ctr-gate ({error})") from error
    if report.format != FORMAT:
        raise ValueError(f"{path} has format {report.format}, but this version reads format {FORMAT}")
    return report
