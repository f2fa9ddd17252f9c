"""What ctr-join prints."""

from collections.abc import Iterator

from contract.events import EVENT_TYPES
from contract.segments import EVENTS, REQUESTS
from model.loop.balance import CATEGORIES, QUANTILES
from model.loop.join import Joined
from model.loop.match import HOUR_MS, hour_of
from model.loop.output import hour_name
from model.loop.predicted_observed import CONFIDENCE, HOURS, PredictedObserved

MAX_NAMES = 3  # of files or hours in a message


def summary(joined: Joined) -> Iterator[str]:
    """Yield the lines that describe a join: the inputs, the balance, the delay of clicks, and the hours."""
    balance = joined.balance
    for kind in (REQUESTS, EVENTS):
        files = sum(segment.kind == kind for segment in joined.inputs.segments)
        read, distinct = joined.inputs.lines[kind], balance.lines[kind]
        copies = f", of which {read - distinct:,} are identical copies" if read > distinct else ""
        yield f"{kind}: {read:,} lines in {files:,} files{copies}"
    if joined.inputs.unfinished:
        yield f"unfinished: {len(joined.inputs.unfinished):,} files were not read"
    yield ""
    yield from balance_table(joined)
    yield ""
    if (delays := balance.click_delays(joined.rules.window_ms)) is not None:
        quantiles = ", ".join(f"{name} {delays[name]:,.1f} s" for name in QUANTILES)
        window = f"the window of {joined.rules.window_ms // 1000:,} s"
        yield f"click delay: {quantiles}; {delays['after_window']:.2%} of the clicks came after {window}"
    yield from predicted_observed_lines(joined.predicted_observed)
    hours = joined.hours
    unchanged = len(hours.rows) - len(hours.written) - len(hours.kept)
    yield f"hours: {len(hours.written):,} written, {unchanged:,} unchanged, {len(hours.kept):,} kept although different"
    yield f"final: impressions before {final_before(joined)}:00 UTC"
    if any(balance.outcomes[name, "pending"] for name in EVENT_TYPES):
        yield "pending events are joined when their hour is final, or at once with --until if no more events will come"
    if joined.marked:
        yield f"marked: {len(joined.marked):,} files of events may be deleted (*.ndjson.shipped)"


def predicted_observed_lines(counts: PredictedObserved) -> Iterator[str]:
    """Yield a line for each model version with its predicted and observed clicks."""
    for version, clicks in counts.newest().items():
        low, high = clicks.interval()
        yield (
            f"predicted / observed clicks: {clicks.ratio():.3f} ({CONFIDENCE:.0%} interval {low:.3f} to {high:.3f}), "
            f"version {version[:12]}, newest {HOURS} hours: {clicks.predicted:,.1f} / {clicks.clicks:,} of "
            f"{clicks.impressions:,} impressions"
        )


def balance_table(joined: Joined) -> Iterator[str]:
    """Yield the lines of a table with the number of events of each type in each category."""
    balance = joined.balance
    yield f"{'':<20}" + "".join(f"{name + 's':>14}" for name in EVENT_TYPES)
    yield f"{'total':<20}" + "".join(f"{balance.events[name]:>14,}" for name in EVENT_TYPES)
    for category in CATEGORIES:
        yield f"{category:<20}" + "".join(f"{balance.outcomes[name, category]:>14,}" for name in EVENT_TYPES)


def final_before(joined: Joined) -> str:
    """Return the first hour that is not final, such as "2026-11-30T20"."""
    rules = joined.rules
    hour_ms = hour_of(rules.watermark_ms - rules.window_ms - rules.lateness_ms)
    return hour_name(max(hour_ms, 0))


def warnings(joined: Joined) -> Iterator[str]:
    """Yield what a user should look at."""
    inputs, balance = joined.inputs, joined.balance
    for (kind, problem), examples in sorted(inputs.examples.items()):
        count = balance.problems[kind, problem] or sum(balance.outcomes[name, "invalid"] for name in EVENT_TYPES)
        what = f"{kind}: {count:,} distinct lines are not joined ({problem})"
        yield f"{what}, such as {examples[0]}"
        yield from (f"  {example}" for example in examples[1:])
    for event in balance.impossible[:MAX_NAMES]:
        yield (
            f"{EVENTS}: {event.stored.event_id!r} is invalid: request {event.stored.score_id} was not scored or has no "
            f"candidate {event.stored.candidate}"
        )
    if balance.repeated_requests:
        yield f"{REQUESTS}: {balance.repeated_requests:,} lines have the score id of another line, and were not used"
    if balance.ahead or balance.behind:
        yield (
            f"clocks differ by more than 5 minutes: {balance.ahead:,} events are later than they were received, and "
            f"{balance.behind:,} earlier. The latter may also have been sent late."
        )
    if balance.reused_event_ids:
        yield f"{balance.reused_event_ids:,} events have the event_id of another event of the same answer. All count."
    held_ms = inputs.received_ms - joined.rules.watermark_ms
    if inputs.watermark_ms == joined.rules.watermark_ms and held_ms >= HOUR_MS:
        yield (
            f"hours are not final because of unfinished files, such as {inputs.unfinished[0]}. If no process "
            "writes it, start the server that wrote it, or set --until."
        )
    for kind, published in (("hours", joined.hours), ("late", joined.late)):
        if published.kept:
            names = ", ".join(published.kept[:MAX_NAMES]) + ", ..." * (len(published.kept) > MAX_NAMES)
            yield (
                f"{kind}: {len(published.kept):,} files ({names}) have other rows than these inputs give, and were not "
                "changed. Inputs may have been moved away since, or have arrived too late. To write an hour again, "
                "delete its file."
            )
