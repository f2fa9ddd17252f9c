"""The report of ctr-gate, as far as other programs read it: whether a new version may replace an old one."""

from pathlib import Path
from typing import Literal

import msgspec

FORMAT = 1
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
    try:
        report = msgspec.json.decode(path.read_bytes(), type=GateReport)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}. Create the report with: ctr-gate NEW OLD JOINED") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a report of ctr-gate ({error})") from error
    if report.format != FORMAT:
        raise ValueError(f"{path} has format {report.format}, but this version reads format {FORMAT}")
    return report
