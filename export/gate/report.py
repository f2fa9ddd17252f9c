"""The report of a gate: gate.json for programs, gate.md and gate.png for people."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from contract.gate import FORMAT, Verdict
from export.gate.figures import Estimate, Figures, SegmentFigures
from export.gate.model import GatedModel
from export.gate.picture import draw
from export.gate.rows import Period, time_text
from export.gate.verdict import Check, Limits, segment_verdict
from model.atomic_folder import check_replaceable, new_folder

REPORT, PAGE, PICTURE = "gate.json", "gate.md", "gate.png"
MAX_ROWS = 50  # of a table of segments


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The content of gate.json. Its first fields are those of contract.gate.GateReport.

    Attributes:
        log: The joined log.
        since: The first moment of the period.
        until: The first moment after the period.
        models: What is known about the models, by "new" and "old".
        limits: The limits that decide.
        checks: The checks from which the verdict follows.
        figures: All figures.
    """

    format: int = FORMAT
    verdict: Verdict
    reasons: tuple[str, ...]
    new: str
    old: str
    log: str
    since: str
    until: str
    models: dict[str, GatedModel]
    limits: Limits
    checks: tuple[Check, ...]
    figures: Figures


def make_report(
    period: Period,
    new: GatedModel,
    old: GatedModel,
    figures: Figures,
    limits: Limits,
    verdict: Verdict,
    checks: tuple[Check, ...],
    why: tuple[str, ...],
) -> Report:
    """Return a report."""
    return Report(
        verdict=verdict,
        reasons=why,
        new=new.version,
        old=old.version,
        log=str(period.folder),
        since=time_text(period.since_ms),
        until=time_text(period.until_ms),
        models={"new": new, "old": old},
        limits=limits,
        checks=checks,
        figures=figures,
    )


def check_out(out: Path, models: Sequence[Path]) -> None:
    """Check that a report can be written to a folder, and would replace nothing but an older report.

    Args:
        out: The folder.
        models: The folders of the models, which must not change.

    Raises:
        ValueError: If it cannot.
    """
    check_replaceable(out, REPORT)
    if out.is_dir() and (others := sorted({path.name for path in out.iterdir()} - {REPORT, PAGE, PICTURE})):
        raise ValueError(
            f"{out} contains {others[0]}, which is not part of a report and would be deleted. Choose another folder."
        )
    for model in models:
        if model.resolve() in out.resolve().parents:
            raise ValueError(f"{out} is inside {model}, which must not change. Choose another folder.")


def write_report(report: Report, out: Path) -> None:
    """Write the folder of a report. It appears whole or not at all, and replaces an older report.

    Raises:
        ValueError: If `out` exists and is not a report.
    """
    check_out(out, ())
    with new_folder(out, REPORT) as folder:
        draw(report.figures, report.limits, folder / PICTURE)
        (folder / PAGE).write_text("\n".join(page(report)) + "\n")
        (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def page(report: Report) -> Iterator[str]:
    """Yield the lines of gate.md."""
    new, old = report.models["new"], report.models["old"]
    figures = report.figures
    yield f"# Gate: {escaped(new.label)} against {escaped(old.label)}"
    yield ""
    yield f"**{report.verdict}**"
    yield ""
    yield from (f"- {escaped(reason)}" for reason in report.reasons)
    yield from [""] * bool(report.reasons)
    yield from paragraph(report)
    yield ""
    yield f"![Intervals and reliability]({PICTURE})"
    yield ""
    yield "## Table 4: the difference of the AUCs"
    yield ""
    yield from table_4(figures, old)
    yield ""
    yield "## Both models"
    yield ""
    yield from metrics_table(figures)
    yield ""
    yield "## Checks"
    yield ""
    yield from checks_table(report.checks)
    yield ""
    yield from segments_tables(report)
    for name, model in (("new", figures.new), ("old", figures.old)):
        yield f"## Deciles of the {name} model"
        yield ""
        yield from segments_table(model.deciles, "decile", report.limits, verdicts=False)
        yield ""
    yield "## Were the models trained on these rows?"
    yield ""
    yield "A gate needs rows that neither model was trained on."
    yield ""
    yield f"- {escaped(new.label)}: {escaped(new.training)}."
    yield f"- {escaped(old.label)}: {escaped(old.training)}."


def paragraph(report: Report) -> Iterator[str]:
    """Yield the lines that state what was compared."""
    figures = report.figures
    yield f"{figures.rows:,} rows with {figures.clicks:,} clicks from {report.since} to {report.until} in"
    yield f"`{report.log}`. The bootstrap draws {figures.clusters:,} {figures.drawn}s, of which"
    yield f"{figures.clicking_clusters:,} have clicks, {figures.draws:,} times (seed {figures.seed}). The intervals of"
    yield "deciles and segments are from the delta method with the same clusters."


def table_4(figures: Figures, old: GatedModel) -> Iterator[str]:
    """Yield the lines of a table like the paper's Table 4, which has one column for each model compared with.

    The paper does not specify its difference, so the table has a row for each possible meaning.
    """
    yield f"| | {escaped(old.label)} | 95% interval |"
    yield "| --- | ---: | ---: |"
    yield f"| \N{GREEK CAPITAL LETTER DELTA} AUC, relative | {percents(figures.auc_relative)} |"
    yield f"| \N{GREEK CAPITAL LETTER DELTA} AUC, in points | {points(figures.auc)} |"
    if figures.auc_relaimpr is not None:
        yield f"| \N{GREEK CAPITAL LETTER DELTA} AUC, RelaImpr | {percents(figures.auc_relaimpr)} |"
    if figures.gauc is not None:
        yield f"| \N{GREEK CAPITAL LETTER DELTA} AUC within units, in points | {points(figures.gauc)} |"


def metrics_table(figures: Figures) -> Iterator[str]:
    """Yield the lines of a table with the metrics of both models."""
    new, old = figures.new, figures.old
    yield "| | new | old | new - old | 95% interval |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    yield f"| AUC | {new.auc:.5f} | {old.auc:.5f} | {interval(figures.auc, '+.5f')} |"
    if new.gauc is not None and old.gauc is not None and figures.gauc is not None:
        yield f"| AUC within units | {new.gauc:.5f} | {old.gauc:.5f} | {interval(figures.gauc, '+.5f')} |"
    yield f"| logloss | {new.logloss:.6f} | {old.logloss:.6f} | {new.logloss - old.logloss:+.6f} | |"
    relative = interval(figures.normalized_entropy, "+.3%")
    yield f"| normalized entropy | {new.normalized_entropy:.5f} | {old.normalized_entropy:.5f} | {relative} |"
    new_ratio, old_ratio = (model.predicted_over_observed for model in (new, old))
    yield f"| predicted / observed | {new_ratio.value:.4f} | {old_ratio.value:.4f} | | |"
    intervals = " | ".join(f"{ratio.low:.4f} to {ratio.high:.4f}" for ratio in (new_ratio, old_ratio))
    yield f"| its 95% interval | {intervals} | | |"
    yield ""
    yield "The difference of the normalized entropies is relative to that of the old model. Less is better."


def checks_table(checks: Sequence[Check]) -> Iterator[str]:
    """Yield the lines of a table with the checks of all rows. Those of segments are in their own tables."""
    yield "| Check | Verdict | Reason |"
    yield "| --- | --- | --- |"
    for check in checks:
        if not check.name.startswith("segment "):
            yield f"| {check.name} | {check.verdict} | {escaped(check.reason)} |"


def segments_tables(report: Report) -> Iterator[str]:
    """Yield the lines of a table for each field, with failed segments first and then those with the most clicks."""
    for field, segments in report.figures.segments.items():
        yield f"## Predicted / observed by segment: {escaped(field)}"
        yield ""
        if not segments:
            yield "No rows."
            yield ""
            continue
        tolerance = report.limits.segment_tolerance
        ranked = sorted(segments, key=lambda s: (segment_verdict(s, tolerance) != "fail", -s.clicks))
        yield from segments_table(ranked[:MAX_ROWS], field, report.limits, verdicts=True)
        if len(ranked) > MAX_ROWS:
            yield ""
            yield f"{len(ranked) - MAX_ROWS:,} more segments are in {REPORT}."
        yield ""


def segments_table(segments: Sequence[SegmentFigures], field: str, limits: Limits, verdicts: bool) -> Iterator[str]:
    """Yield the lines of a table of segments or deciles. Only segments have a verdict and the old model's ratio."""
    level = "99%" if verdicts else "95%"
    yield f"| {escaped(field)} | rows | clicks | predicted | observed | predicted / observed | {level} interval |" + (
        " old model | verdict |" if verdicts else ""
    )
    yield "| --- |" + " ---: |" * 6 + (" ---: | --- |" if verdicts else "")
    for s in segments:
        low, high = ("" if bound is None else f"{bound:.3f}" for bound in (s.low, s.high))
        ratio, old = ("" if value is None else f"{value:.3f}" for value in (s.ratio, s.old_ratio))
        line = f"| {escaped(s.name)} | {s.rows:,} | {s.clicks:,} | {s.predicted:.5f} | {s.observed:.5f} | {ratio} "
        line += f"| {low} to {high} |"
        yield line + (f" {old} | {segment_verdict(s, limits.segment_tolerance)} |" if verdicts else "")


def interval(found: Estimate, form: str) -> str:
    """Return the cells of an estimate and its interval."""
    return f"{found.value:{form}} | {found.low:{form}} to {found.high:{form}}"


def percents(found: Estimate) -> str:
    """Return the cells of a relative difference and its interval."""
    return interval(found, "+.3%")


def points(found: Estimate) -> str:
    """Return the cells of a difference of AUCs and its interval, in percentage points."""
    low, high = f"{100 * found.low:+.3f}", f"{100 * found.high:+.3f}"
    return f"{100 * found.value:+.3f} | {low} to {high}"


def escaped(text: str) -> str:
    """Return text for a cell of a table or a paragraph of Markdown."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
