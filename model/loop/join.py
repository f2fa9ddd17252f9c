"""ctr-join: the request log and the events, as a log to train on.

1. inputs.py partitions all lines by the time of their answer, in temporary files.
2. match.py joins the events of each answer. This module writes the rows of each partition to temporary files, by hour.
3. output.py sorts the rows of each final hour, and writes them to a file that never changes again.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from contract.request_log import LogLine
from contract.segments import EVENTS, FINISHED, REQUESTS, shipped_name
from model.loop.balance import Balance
from model.loop.inputs import Inputs, Partitions, find_segments, partition
from model.loop.lines import MAX_SKEW_MS, BadLineError, Event, parse_event, parse_request
from model.loop.match import HOUR_MS, Rules, hour_of, match
from model.loop.output import HOURS, LATE, Published, Settings, TemporaryTables, open_output
from model.loop.predicted_observed import PredictedObserved
from model.loop.table import LATE_COLUMNS, LATE_SORT, SORT, Names, frame_of, late_frame, rows_of, values_of


@dataclass(frozen=True)
class Joined:
    """The result of a join.

    Attributes:
        inputs: The files that were read.
        balance: What became of every line.
        predicted_observed: The predicted and observed clicks of the hours that are final.
        rules: The parameters.
        hours: What was written to hours/.
        late: What was written to late/.
        marked: The segments of events that were renamed.
    """

    inputs: Inputs
    balance: Balance
    predicted_observed: PredictedObserved
    rules: Rules
    hours: Published
    late: Published
    marked: Sequence[Path]


def join(
    paths: Sequence[Path], out: Path, settings: Settings, until_ms: int | None = None, mark_joined: bool = False
) -> Joined:
    """Join request logs and events, and write the hours that are final.

    Args:
        paths: Folders with segments, or segments.
        out: The folder for the joined log. It may contain hours that earlier joins wrote.
        settings: The window, the lateness and the names of the columns.
        until_ms: The time before which all events are in the inputs, in milliseconds since 1970. The default is the
            latest time in the inputs, or a minute before the first unfinished segment was opened.
        mark_joined: Whether to rename the segments of events that no later join needs.

    Raises:
        ValueError: If an input or the output cannot be used. The message names it.
    """
    inputs = find_segments(paths)
    names = Names(settings.rename)
    with open_output(out, settings) as output:
        partitions = partition(inputs, output.temporary("lines"))
        watermark_ms = inputs.watermark_ms if until_ms is None else until_ms
        rules = Rules(settings.window_s * 1000, settings.lateness_s * 1000, watermark_ms)
        makers = {HOURS: lambda rows: frame_of(rows, names), LATE: late_frame}
        tables = TemporaryTables(output.temporary("tables"), makers)
        balance, predicted_observed = join_partitions(partitions, rules, names, tables)
        hours = output.publish(HOURS, tables, names.columns, [names.of(name) for name in SORT])
        assert sum(hours.rows.values()) == balance.rows["impression"]
        late = output.publish(LATE, tables, LATE_COLUMNS, LATE_SORT)
        report = report_of(inputs, balance, rules, hours, late)
        output.write_report({**report, "predicted_observed": predicted_observed.as_json()})
        marked = mark_segments(inputs, rules) if mark_joined else []
    return Joined(inputs, balance, predicted_observed, rules, hours, late, marked)


def join_partitions(
    partitions: Partitions, rules: Rules, names: Names, tables: TemporaryTables
) -> tuple[Balance, PredictedObserved]:
    """Join the lines of each partition, and write the rows to temporary tables.

    Raises:
        ValueError: If a feature's name is not available.
        AssertionError: If the balance is violated.
    """
    balance, predicted_observed = Balance(), PredictedObserved()
    for name in partitions.names():
        events = read_events(partitions.read(EVENTS, name), balance)
        requests = read_requests(partitions.read(REQUESTS, name), balance, events)
        for score_id in sorted(events):
            matched = match(requests.get(score_id), events[score_id], rules)
            balance.add_matched(events[score_id], matched)
            for late in matched.late:
                received_ms = late.event.received_ms
                if rules.watermark_ms >= hour_of(received_ms) + HOUR_MS:
                    tables.add(LATE, received_ms, late)
            if matched.impressions:
                rows = rows_of(requests[score_id], matched.impressions, names)
                for impression, row in zip(matched.impressions, rows, strict=True):
                    tables.add(HOURS, impression.event.time_ms, row)
                    version, ctr, click = values_of(row, ("version", "ctr", "click"))
                    predicted_observed.add(hour_of(impression.event.time_ms), version, ctr, click)
    tables.flush()
    balance.check()
    return balance, predicted_observed


def read_events(lines: Sequence[bytes], balance: Balance) -> dict[str, list[Event]]:
    """Return the valid events by score id."""
    balance.add_lines(EVENTS, lines)
    events: dict[str, list[Event]] = {}
    for line in lines:
        try:
            event = parse_event(line)
        except BadLineError as error:
            if error.type is None:
                balance.problems[EVENTS, error.problem] += 1
            else:
                balance.add_invalid(error.type)
            continue
        balance.add_event(event)
        events.setdefault(event.stored.score_id, []).append(event)
    return events


def read_requests(lines: Sequence[bytes], balance: Balance, wanted: Mapping[str, object]) -> dict[str, LogLine]:
    """Return the requests that have events, by score id. Of several lines with the same score id, the first counts."""
    balance.add_lines(REQUESTS, lines)
    requests: dict[str, LogLine] = {}
    seen = set()
    for line in lines:
        try:
            request = parse_request(line)
        except BadLineError as error:
            balance.problems[REQUESTS, error.problem] += 1
            continue
        if request.score_id in seen:
            balance.repeated_requests += 1
            continue
        seen.add(request.score_id)
        balance.requests += 1
        if request.score_id in wanted:
            requests[request.score_id] = request
    return requests


def report_of(inputs: Inputs, balance: Balance, rules: Rules, hours: Published, late: Published) -> dict[str, object]:
    """Return the content of join.json. It depends only on the lines of the inputs, not on the files that hold them."""
    return {
        "format": 1,
        "window_s": rules.window_ms // 1000,
        "lateness_s": rules.lateness_ms // 1000,
        "watermark_ms": rules.watermark_ms,
        "unfinished_segments": len(inputs.unfinished),
        **balance.as_json(rules.window_ms),
        HOURS: hours.rows,
        LATE: late.rows,
        "kept": {HOURS: hours.kept, LATE: late.kept},
    }


def mark_segments(inputs: Inputs, rules: Rules) -> list[Path]:
    """Rename the segments whose events no later join needs, so that they may be deleted. Return their new paths.

    A segment with a line that could not be read keeps its name.
    """
    marked = []
    for segment in inputs.segments:
        # The impression of a click may be later than the click by as much as clocks differ.
        is_done = rules.is_final(segment.newest_ms + MAX_SKEW_MS) and not segment.problems
        if segment.kind == EVENTS and is_done and segment.path.name.endswith(FINISHED):
            target = shipped_name(segment.path)
            with suppress(FileNotFoundError):  # Another process has just renamed it.
                segment.path.rename(target)
                marked.append(target)
    return marked
