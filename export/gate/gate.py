"""Compare two models on a period of a joined log."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from export.gate.figures import measure
from export.gate.model import identity_of, model_of, training_warnings
from export.gate.report import Report, make_report
from export.gate.rows import Period, ScoredRows, open_period, score_period, time_text
from export.gate.verdict import Limits, decide, reasons
from export.predict.scorer import Scorer, open_scorer


def gate(
    new: Path,
    old: Path,
    joined: Path,
    limits: Limits,
    by: Sequence[str] = (),
    since_ms: int | None = None,
    until_ms: int | None = None,
    data: Path = Path(),
) -> Report:
    """Compare two models, and return the report. Progress and warnings are printed.

    Args:
        new: The folder of the new bundle or run.
        old: The folder of the old one.
        joined: The folder of a joined log.
        limits: The limits that decide.
        by: The columns of the log whose values are segments.
        since_ms: The first moment of the period, in milliseconds since 1970. None for 24 hours before its end.
        until_ms: The first moment after the period. None for the end of the log.
        data: The base folder for a run's relative paths.

    Raises:
        ValueError: If a model or the log cannot be read, the rows cannot be compared, or a model has changed meanwhile.
    """
    identities = [identity_of(folder) for folder in (new, old)]
    scorers = open_scorer(new), open_scorer(old)
    period = open_period(joined, scorers, by, since_ms, until_ms)
    bounds = f"{time_text(period.since_ms)} to {time_text(period.until_ms)}"
    print(f"rows: {bounds}. Neither model may have been trained on them.")
    models = [model_of(folder, period, data) for folder in (new, old)]
    for model in models:
        print(f"{model.label}: {model.training}")
    for warning in training_warnings(models, period):
        print(f"warning: {warning}", file=sys.stderr)
    figures = measure(rows := score_with_progress(period, *scorers))
    for folder, identity in zip((new, old), identities, strict=True):
        # The report would name the version of a model that was not measured.
        if identity_of(folder) != identity:
            raise ValueError(f"{folder} was replaced while it was being compared. Run ctr-gate again.")
    if rows.drawn == "row":
        print("warning: the log has neither units nor requests, so intervals may be too narrow", file=sys.stderr)
    verdict, checks = decide(figures, limits)
    return make_report(period, models[0], models[1], figures, limits, verdict, checks, reasons(checks, verdict))


def score_with_progress(period: Period, new: Scorer, old: Scorer) -> ScoredRows:
    """Score the rows of a period, and show the progress."""
    columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("rows", total=period.rows)
        return score_period(period, new, old, lambda rows: progress.advance(task, rows))
