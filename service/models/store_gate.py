"""The gate of a store: the reports with which versions were accepted, and whether the store demands them.

STORE/settings.json          whether new versions need a report
STORE/gates/<version>.json   the report with which the version was accepted
"""

import os
from pathlib import Path

import msgspec

from contract.gate import GateReport, parse_gate_report, read_gate_bytes, read_gate_report
from contract.regular_file import read_regular_file
from contract.store import CURRENT, MAX_BYTES, VERSION, Pointer, StoreError, unreadable

SETTINGS = "settings.json"
GATES = "gates"
SHORT = 12  # characters of a version in a message
HOW_TO_SKIP = "--force skips this check"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of STORE/settings.json.

    Attributes:
        require_gate: Whether a version needs a report of ctr-gate before it can be added and activated.
    """

    require_gate: bool = False


def read_store_settings(store: Path) -> Settings:
    """Return the settings of a store, or the defaults if it has none.

    Raises:
        StoreError: The file cannot be read.
    """
    path = store / SETTINGS
    try:
        return msgspec.json.decode(read_regular_file(path, MAX_BYTES), type=Settings)
    except FileNotFoundError as error:
        # A link to a disk that is not mounted must not switch the gate off.
        if path.is_symlink():
            raise unreadable(path, error) from error
        return Settings()
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # msgspec.DecodeError and UnicodeDecodeError, too
        raise StoreError(
            f"{path} cannot be read ({error}): write it again with ctr-store require-gate {store} on"
        ) from error


def evidence_file(store: Path, version: str) -> Path:
    """Return the file with a version's report. It is outside the bundle's folder, whose files have digests."""
    return store / GATES / f"{version}.json"


def accepted_report(path: Path, version: str, pointer: Pointer | None) -> bytes:
    """Return the content of a report, if a version may replace the current one because of it.

    Args:
        path: The report.
        version: The version to add.
        pointer: The pointer of the store, or None if it has no current version.

    Raises:
        StoreError: The report is unreadable, is about other versions, or does not have the verdict "pass".
    """
    try:
        content = read_gate_bytes(path)
        report = parse_gate_report(path, content)
    except ValueError as error:
        raise StoreError(str(error)) from error
    if reason := reason_against(report, version, pointer):
        raise StoreError(f"{path}: {reason}. {HOW_TO_SKIP}.")
    return content


def reason_against(report: GateReport, version: str, pointer: Pointer | None) -> str | None:
    """Return why a version may not replace the current one with this report, or None if it may."""
    if report.new != version:
        return f"the report is about {named(report.new)}, not about this version, {version[:SHORT]}"
    if pointer is None:
        return "the store has no current version, so the report cannot compare with it. Omit the report"
    if report.old != pointer.version:
        return (
            f"the report compares with {named(report.old)}, but the current version is {pointer.version[:SHORT]}. "
            "Compare with the current version"
        )
    if report.verdict != "pass":
        return ": ".join(filter(None, (f"the verdict is {report.verdict}", " ".join(report.reasons).rstrip("."))))
    return None


def named(model: str) -> str:
    """Return the short name of a model in a report. A run has no version."""
    if model.startswith("run:"):
        return f"a run ({model.removeprefix('run:')})"
    return model[:SHORT] if VERSION.fullmatch(model) else repr(model[:SHORT])


def reason_to_refuse(store: Path, version: str, pointer: Pointer | None) -> str | None:
    """Return why a store does not activate a version, or None if it may be activated.

    If the store demands reports, a version needs one that compares it with the current version. The first version of a
    store needs none, and neither does a version that was current before.
    """
    if not read_store_settings(store).require_gate:
        return None
    if pointer is None:
        return damaged_pointer(store)
    if was_current(version, pointer):
        return None
    path = evidence_file(store, version)
    if not path.exists():
        return (
            f"{store} activates only versions that passed ctr-gate, and {version[:SHORT]} has no report: add it again "
            "with --gate REPORT.json"
        )
    try:
        reason = reason_against(read_gate_report(path), version, pointer)
    except ValueError as error:
        return str(error)
    return None if reason is None else f"{path}: {reason}"


def was_current(version: str, pointer: Pointer | None) -> bool:
    """Return whether a version is current or was before. It needs no report, so that a damaged copy can be repaired."""
    return pointer is not None and version in (pointer.version, *pointer.previous)


def damaged_pointer(store: Path) -> str | None:
    """Return the reason for refusing versions if the pointer of a store is damaged, or None if there is none."""
    if not os.path.lexists(store / CURRENT):
        return None
    return (
        f"{store / CURRENT} is damaged, so the current version is not known. Make the right version current again with "
        f"ctr-store activate {store} VERSION --force"
    )


def describe_evidence(store: Path, version: str) -> str:
    """Return the text about a version's report in the list of versions, or "" if it has no report."""
    path = evidence_file(store, version)
    if not path.exists():
        return ""
    try:
        report = read_gate_report(path)
    except ValueError:
        return "  gate: damaged"
    return f"  gate: {report.verdict}, against {named(report.old)}"
