"""Write the request log and the event log of a simulation, as the service and ctr-collect would have written them."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np

from contract.events import StoredEvent
from contract.request_log import LoggedCandidate, LogLine
from contract.score_ids import RANDOM_BITS, is_logged, new_score_id
from contract.segments import EVENTS, REQUESTS, UNFINISHED, finished_name
from contract.units import BUCKETS, REQUEST_LOG_SALT, bucket
from model.data.synthetic.click_model import sigmoid
from model.data.synthetic.traffic import DAY_S, Requests, Traffic
from model.data.synthetic.traffic_events import Answers, SentEvent, iso_times, show
from model.data.synthetic.traffic_truth import Truth

MODEL, VERSION = "simulated", "simulated"
ANSWER_S = 0.01
SEGMENT_S = 3600


def write_days(
    traffic: Traffic, days: int, requests_per_day: int, log: Path, events: Path, sample: float = 1.0
) -> Truth:
    """Simulate some days with a server that predicts what a model can learn from the generated log.

    Args:
        traffic: The users.
        days: How many days.
        requests_per_day: How many requests there are on each day.
        log: The folder for the request log.
        events: The folder for the events.
        sample: The share of units whose requests are in the log.

    Returns:
        What happened.
    """
    truth, waiting = Truth(), list[SentEvent]()
    for day in range(days):
        times_s = traffic.times(requests_per_day, day)
        requests = traffic.requests(times_s, first=day * requests_per_day)
        answers = simulated_answers(traffic.seed, requests, sample)
        write_segments(log, REQUESTS, log_lines(requests, answers))
        shown, sent = show(traffic, requests, answers)
        truth.add(requests, answers, shown, sent)
        waiting = sorted((*waiting, *sent), key=lambda sent: sent.send_s)
        end_s = (times_s[0] // DAY_S + 1) * DAY_S
        ready = [event for event in waiting if event.send_s < end_s]
        waiting = waiting[len(ready) :]
        write_segments(events, EVENTS, event_lines(ready))
    write_segments(events, EVENTS, event_lines(waiting))
    return truth


def simulated_answers(seed: int, requests: Requests, sample: float) -> Answers:
    """Answer requests without a server."""
    rng = np.random.default_rng([seed, 3, int(requests.number[0])])
    time_s = requests.time_s + ANSWER_S
    high, low = (rng.integers(0, 2 ** (RANDOM_BITS // 2), len(requests)).tolist() for _ in range(2))
    logged = {unit: bucket(REQUEST_LOG_SALT, unit) < sample * BUCKETS for unit in set(requests.unit.tolist())}
    score_id = [
        new_score_id(time, logged[unit], left << RANDOM_BITS // 2 | right)
        for time, unit, left, right in zip(time_s.tolist(), requests.unit.tolist(), high, low, strict=True)
    ]
    return Answers(score_id, [VERSION] * len(requests), time_s, sigmoid(requests.log_logit))


def log_lines(requests: Requests, answers: Answers) -> Iterator[tuple[float, bytes]]:
    """Yield the time of each logged request, in seconds since 1970, and its line."""
    encode = msgspec.json.Encoder().encode
    columns = (
        requests.time_s.tolist(),
        iso_times(np.rint(answers.time_s * 1000).astype(np.int64)),
        answers.score_id,
        requests.unit.tolist(),
        requests.contexts(),
        requests.features(),
        answers.ctr.tolist(),
        requests.log_logit.tolist(),
    )
    for number, row in enumerate(zip(*columns, strict=True), int(requests.number[0])):
        time_s, time, score_id, unit, context, features, ctr, logit = row
        if not is_logged(score_id):
            continue
        line = LogLine(
            time=time,
            score_id=score_id,
            request_id=f"request-{number}",
            model=MODEL,
            version=VERSION,
            unit=unit,
            context=context,
            candidates=[
                LoggedCandidate(position, ad["ad"], ad, ctr[position], logit[position])
                for position, ad in enumerate(features)
            ],
            candidate_count=len(features),
        )
        yield time_s, encode(line)


def event_lines(sent: Sequence[SentEvent]) -> Iterator[tuple[float, bytes]]:
    """Yield the time of each event's arrival in seconds since 1970, and its line."""
    encode = msgspec.json.Encoder().encode
    received = iso_times(np.rint(np.array([event.send_s for event in sent]) * 1000).astype(np.int64))
    for (send_s, event, _), time in zip(sent, received, strict=True):
        values = {name: getattr(event, name) for name in event.__struct_fields__}
        yield send_s, encode(StoredEvent(**values, received=time))


def write_segments(folder: Path, kind: str, lines: Iterable[tuple[float, bytes]]) -> None:
    """Write lines in the order of time to one finished segment per hour."""
    folder.mkdir(parents=True, exist_ok=True)
    for hour, group in groupby(lines, lambda line: int(line[0] // SEGMENT_S)):
        moment = datetime.fromtimestamp(hour * SEGMENT_S, UTC).strftime("%Y%m%dT%H%M%S.%f")
        unfinished = folder / f"{kind}-{moment}-1{UNFINISHED}"
        unfinished.write_bytes(b"".join(line + b"\n" for _, line in group))
        unfinished.rename(finished_name(unfinished))
