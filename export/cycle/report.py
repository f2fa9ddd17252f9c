"""The report of a day: cycle.json for programs, and cycle.md for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from contract.gate import GateReport
from contract.regular_file import read_regular_file
from export.cycle.progressive import Progressive
from export.cycle.state import TOO_FEW_CLICKS, DoneStep
from model.atomic_folder import write_whole
from model.training.metrics import Metrics

FORMAT = 1
MAX_BYTES = 64 * 1024 * 1024
NOT_CALIBRATED = "the model is not calibrated, because valid has too few clicks: see calibrate.log"
Outcome = Literal["added", "fail", "not enough clicks"]


class Rows(msgspec.Struct, frozen=True):
    """The number of rows and of clicks in a part of the log."""

    rows: int
    clicks: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The content of cycle.json. A day with this file is finished.

    Attributes:
        format: The version of this format.
        day: The day.
        window: The first and the last day of the log.
        outcome: "added", or the verdict of the gate because of which the version was not added.
        version: The new version.
        activated: Whether the version was made current.
        served: The version that the store served before, or "".
        warm: The day whose run training continued, or None.
        cold: Why training started cold, or "".
        log: The rows and clicks of the day and of the splits of the log.
        steps: The steps, with their command lines.
        progressive: How the served version predicted the day, or None if no version was served.
        valid: The metrics of the new model on valid, before the fitted calibration.
        test: The same on test.
        gate: The part of the gate's report that decides, or None without a gate.
    """

    format: int = FORMAT
    day: str
    window: tuple[str, str]
    outcome: Outcome
    version: str
    activated: bool
    served: str
    warm: str | None
    cold: str
    log: dict[str, Rows]
    steps: dict[str, DoneStep]
    progressive: Progressive | None
    valid: Metrics
    test: Metrics
    gate: GateReport | None


def read_report(path: Path) -> Report | None:
    """Return the report of a day, or None if the day is not finished.

    Raises:
        ValueError: The file is damaged or was written by another version.
    """
    try:
        report = msgspec.json.decode(read_regular_file(path, MAX_BYTES), type=Report)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # msgspec.DecodeError and UnicodeDecodeError, too
        raise ValueError(f"{path} cannot be read ({error}). Delete it, and run its day again.") from error
    if report.format != FORMAT:
        raise ValueError(f"{path} has format {report.format}, but this version reads {FORMAT}.")
    return report


def write_report(json: Path, text: Path, report: Report) -> None:
    """Write both files, the one that marks the day as finished last."""
    write_whole(text, markdown(report).encode())
    write_whole(json, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def markdown(report: Report) -> str:
    """Return the report for people."""
    parts = [
        f"# {report.day}: {headline(report)}",
        f"The window is {report.window[0]} to {report.window[1]}. {start_text(report)}",
        table(["Part of the log", "Impressions", "Clicks", "Click rate"], log_rows(report.log)),
        table(
            ["Model", "Evaluated on", "AUC", "Normalized entropy", "Predicted/observed"],
            metrics_rows(report),
        ),
        "The normalized entropy is the logloss divided by that of a constant prediction of the click rate. Below 1, a "
        "model is better than this prediction. The new model is evaluated before the calibration of ctr-calibrate.",
    ]
    if report.gate is not None and report.gate.reasons:
        parts.append("The gate's reasons:\n\n" + "\n".join(f"- {reason}" for reason in report.gate.reasons))
    steps = [[name, f"{step.seconds:.1f}", f"`{name}.log`"] for name, step in report.steps.items()]
    parts += [table(["Step", "Seconds", "Output"], steps), commands(report.steps)]
    return "\n\n".join(parts) + "\n"


def headline(report: Report) -> str:
    """Return what became of the new version."""
    version = report.version[:12]
    if report.outcome == "added":
        served = "and is served" if report.activated else "and is not served until you activate it"
        return f"version {version} was added to the store, {served}"
    kept = f"version {report.served[:12]} stays" if report.served else "the store stays as it is"
    why = "did not pass the gate" if report.outcome == "fail" else "did not have enough clicks for the gate"
    return f"version {version} {why}, so {kept}"


def start_text(report: Report) -> str:
    """Return the sentences about training, a missing calibration, and a missing gate."""
    continued = f"Training continued the run of {report.warm}."
    training = continued if report.warm else f"Training started cold: {report.cold}."
    gate = "" if report.gate else " There was no gate, because the store served no version."
    calibrate = report.steps.get("calibrate")
    calibration = f" {NOT_CALIBRATED.capitalize()}." if calibrate and calibrate.code == TOO_FEW_CLICKS else ""
    return training + calibration + gate


def log_rows(log: Mapping[str, Rows]) -> list[list[str]]:
    """Return the rows of the table about the log."""
    return [
        [name, f"{part.rows:,}", f"{part.clicks:,}", f"{part.clicks / part.rows:.4f}" if part.rows else ""]
        for name, part in log.items()
    ]


def metrics_rows(report: Report) -> list[list[str]]:
    """Return the rows of the table about the models."""
    rows = [("new", "valid", report.valid), ("new", "test", report.test)]
    if report.progressive is not None and report.progressive.metrics is not None:
        rows.insert(0, (f"served, {report.served[:12]}", "the day", report.progressive.metrics))
    return [
        [model, where, f"{found.auc:.4f}", number(found.normalized_entropy), number(found.predicted_over_observed)]
        for model, where, found in rows
    ]


def number(value: float | None) -> str:
    """Format a metric that older runs do not have."""
    return "" if value is None else f"{value:.4f}"


def commands(steps: Mapping[str, DoneStep]) -> str:
    """Return the command lines of the steps, so that you can run one by hand."""
    lines = "\n".join(step.command for step in steps.values())
    return f"The commands:\n\n```sh\n{lines}\n```"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
