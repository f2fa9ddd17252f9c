"""ctr-join on real files: the same bytes whatever the files, final hours, and reports of what was not joined."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.events import EventType
from contract.request_log import LoggedCandidate
from contract.segments import EVENTS, FINISHED, REQUESTS, SHIPPED, UNFINISHED, finished_name
from model.cli.join import main
from model.loop import inputs
from model.loop.join import Joined, join, mark_segments
from model.loop.match import Rules
from model.loop.output import Settings
from tests.support.loop_logs import AD, START_S, event, iso, request, score_id, write_logs, write_segment
from tests.support.paths import ROOT
from tests.support.request_log import FIRST_FORMAT_LINE

HOUR = 3600
SETTINGS = Settings(window_s=600, lateness_s=HOUR)
UNTIL_MS = int((START_S + 100 * HOUR) * 1000)


def contents(out: Path) -> dict[str, bytes]:
    """Return all files of a joined log."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def read_hours(out: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted((out / "hours").iterdir())], how="diagonal")


def received(line: bytes) -> str:
    """Return when an event was received, or an empty string for a damaged line."""
    found = re.search(rb'"received":"([^"]+)"', line)
    return found[1].decode() if found else ""


def generated_logs(seed: int, requests: int = 40) -> tuple[list[bytes], list[bytes]]:
    """Return lines of both logs over three hours, with duplicates, late events, and damaged lines."""
    drawn = random.Random(seed)
    lines, events = [], []
    for number in range(requests):
        asked, of_log = drawn.uniform(0, 3 * HOUR), drawn.random() < 0.9
        of = score_id(number, asked, logged=of_log)
        if of_log and drawn.random() < 0.95:
            lines.append(request(number, asked, [{"ad": f"a{drawn.randrange(5)}", "bid": drawn.random()}, AD]))
        for candidate in range(3):
            shown = asked + drawn.expovariate(0.1)
            received = shown + drawn.choice([0, 1, 400, 4 * HOUR])
            delays: dict[EventType, float] = {"impression": 0, "click": drawn.expovariate(0.01), "conversion": 99}
            for kind, delay in delays.items():
                for _ in range(drawn.choice([0, 1, 1, 2])):
                    events.append(
                        event(
                            kind,
                            of,
                            shown + delay,
                            candidate=candidate,
                            event_id=f"{kind}{drawn.randrange(2)}",
                            received_s=received + delay + drawn.choice([0, 3]),
                            value=drawn.random() if kind == "conversion" else None,
                        )
                    )
    lines += [b'{"ctr": [0.1], "time": "2026-11-30T20:00:00.000Z"}', b"", b'{"format": 3}']
    return lines, [*events, b"{", b'{"type": "click", "score_id": "x"}']


def test_the_joined_log_has_a_row_for_each_impression(tmp_path: Path) -> None:
    candidates = [
        LoggedCandidate(0, "first", {"ad": "a", "bid": 1.5}, ctr=0.25, logit=-1.1),
        LoggedCandidate(3, 17, {"ad": 7, "bid": None}, inclusion=0.25),
    ]
    lines = [request(1, 5, candidates, candidate_count=9, context={"user": " u1 ", "vip": True}, unit="p:1")]
    of = score_id(1, 5)
    events = [
        event("impression", of, 6, position=2, propensity=0.5),
        event("click", of, 8.25),
        event("conversion", of, 9, value=2.5),
        event("impression", of, 7, candidate=3),
    ]
    paths = write_logs(tmp_path, lines, events)
    out = tmp_path / "joined"
    join(paths, out, SETTINGS, UNTIL_MS)
    table = pl.read_parquet(out / "hours" / "2026-11-30T20.parquet")
    assert table.with_columns(pl.col("time").cast(pl.Int64)).rows(named=True) == [
        {
            "time": int((START_S + 6) * 1000),
            "unit": "p:1",
            "score_id": of,
            "candidate": 0,
            "candidate_id": "first",
            "click": 1,
            "click_delay_s": 2.25,
            "position": 2,
            "propensity": 0.5,
            "weight": 1.0,
            "model": "stec",
            "version": "v1",
            "ctr": 0.25,
            "logit": -1.1,
            "conversions": 1,
            "value": 2.5,
            "ad": "a",
            "bid": "1.5",
            "user": "u1",
            "vip": "true",
        },
        {
            "time": int((START_S + 7) * 1000),
            "unit": "p:1",
            "score_id": of,
            "candidate": 3,
            "candidate_id": "17",
            "click": 0,
            "click_delay_s": None,
            "position": None,
            "propensity": None,
            "weight": 4.0,
            "model": "stec",
            "version": "v1",
            "ctr": None,
            "logit": None,
            "conversions": 0,
            "value": 0.0,
            "ad": "7",
            "bid": None,
            "user": "u1",
            "vip": "true",
        },
    ]
    report = json.loads((out / "join.json").read_text())
    assert report["balance"]["impressions"] | {"total": 2, "joined": 2} == report["balance"]["impressions"]
    assert report["hours"] == {"2026-11-30T20": 2}


@settings(max_examples=8)
@given(st.integers(0, 2**32), st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_splits_and_copies_of_files_do_not_change_a_byte(seed: int, drawn: random.Random, parts: int) -> None:
    lines, events = generated_logs(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        join(write_logs(root / "whole", lines, events), root / "one", SETTINGS, UNTIL_MS)
        paths = []
        for kind, all_lines in ((REQUESTS, lines), (EVENTS, events)):
            shuffled = [*all_lines, *drawn.sample(all_lines, drawn.randrange(len(all_lines)))]
            drawn.shuffle(shuffled)
            for part in range(parts):
                ending = drawn.choice([FINISHED, SHIPPED])
                write_segment(root / f"server{part}", kind, shuffled[part::parts], part, ending)
            paths += [root / f"server{part}" for part in range(parts)]
        drawn.shuffle(paths)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inputs, "MAX_BUFFER_BYTES", drawn.choice([1, 5_000, 10**9]))
            join(paths, root / "other", SETTINGS, UNTIL_MS)
        assert contents(root / "one") == contents(root / "other")
        assert len(list((root / "one" / "hours").iterdir())) >= 3


@settings(max_examples=8)
@given(st.integers(0, 2**32), st.integers(0, 10 * HOUR))
def test_later_inputs_never_change_a_written_hour(seed: int, until_s: int) -> None:
    lines, events = generated_logs(seed)
    known = [line for line in events if received(line) < iso(until_s)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths, out = write_logs(root, lines, [*known, event("click", score_id(1), 0)]), root / "joined"
        join(paths, out, SETTINGS, int((START_S + until_s) * 1000))
        then = contents(out)
        write_segment(root / "events", EVENTS, events, 1)
        joined = join(paths, out, SETTINGS, UNTIL_MS)
        assert not joined.hours.kept
        assert not joined.late.kept
        now = contents(out)
        assert {name: now[name] for name in then if name != "join.json"} == {
            name: content for name, content in then.items() if name != "join.json"
        }
        join(paths, root / "fresh", SETTINGS, UNTIL_MS)
        assert contents(root / "fresh") == now


def run_and_kill(paths: Sequence[Path], out: Path, after_s: float) -> float | None:
    """Run ctr-join, and kill it some time after it has begun to join.

    Returns:
        The time that it took to join, or None if it was killed.
    """
    options = ["--window", "600s", "--lateness", "1h", "--until", iso(100 * HOUR)]
    command = [sys.executable, "-m", "model.cli.join", *map(str, paths), "--out", str(out), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (out / ".lock").exists():
            assert process.poll() is None
            time.sleep(0.001)
        began = time.monotonic()
        try:
            assert process.wait(after_s) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            return None
        return time.monotonic() - began


@pytest.mark.parametrize(
    "rounds", [4, pytest.param(100, marks=[pytest.mark.full, pytest.mark.timeout(3600)], id="100 rounds")]
)
def test_a_killed_join_leaves_nothing_that_a_rerun_does_not_complete(tmp_path: Path, rounds: int) -> None:
    lines, events = generated_logs(1, 800)
    paths = write_logs(tmp_path, lines, events)
    duration_s = run_and_kill(paths, tmp_path / "expected", 300)
    assert duration_s is not None
    expected, out = contents(tmp_path / "expected"), tmp_path / "joined"
    drawn, killed = random.Random(1), 0
    for _ in range(rounds):
        shutil.rmtree(out, ignore_errors=True)
        killed += run_and_kill(paths, out, drawn.uniform(0, duration_s)) is None
        assert all(path.read_bytes() == expected[f"hours/{path.name}"] for path in out.glob("hours/*"))
        join(paths, out, SETTINGS, UNTIL_MS)
        assert contents(out) == expected
    assert killed >= rounds / 4


def test_lines_that_cannot_be_read_are_reported_with_their_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = score_id(1)
    lines = [request(1), b"\x00\x00", FIRST_FORMAT_LINE.strip(), b'{"format": 3, "candidates": "?"}']
    events = [
        event("impression", of, 1),
        b'{"type": "click"',
        event("click", "no-id", 2),
        event("click", of, 3).replace(b'"time":"2026-11-30T20:00:03.000Z"', b'"time":"2026-11-30 20:00:03"'),
        event("conversion", of, 3, value=1e300).replace(b"1e300", b"1e999"),
        event("click", of, -400),
        event("click", of, 5, candidate=1, event_id="impossible"),
    ]
    paths = write_logs(tmp_path, lines, events)
    assert main([*map(str, paths), "--out", str(tmp_path / "joined"), "--until", iso(100 * HOUR)]) == 0
    printed = capsys.readouterr()
    log, event_log = (next(path.iterdir()) for path in paths)
    assert f"requests: 1 distinct lines are not joined (unreadable), such as {log}:2: " in printed.err
    assert f"requests: 1 distinct lines are not joined (old format), such as {log}:3: " in printed.err
    assert f"requests: 1 distinct lines are not joined (newer format), such as {log}:4: " in printed.err
    assert f"events: 1 distinct lines are not joined (unreadable), such as {event_log}:2: " in printed.err
    assert f"(invalid), such as {event_log}:3: score_id 'no-id' is not a score id" in printed.err
    assert f"{event_log}:4: time '2026-11-30 20:00:03' must be an ISO 8601 time with a time zone" in printed.err
    assert f"events: 'impossible' is invalid: request {of} was not scored or has no candidate 1" in printed.err
    report = json.loads((tmp_path / "joined" / "join.json").read_text())
    assert report["requests"]["usable"] == 1
    assert {name: report["balance"][name]["invalid"] for name in report["balance"]} == {
        "impressions": 0,
        "clicks": 4,
        "conversions": 1,
    }


def test_two_lines_with_the_same_score_id_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [request(1, candidates=[{"ad": ad}]) for ad in ("b", "a")]
    paths, out = write_logs(tmp_path, lines, [event("impression", score_id(1), 1)]), tmp_path / "joined"
    assert main([*map(str, paths), "--out", str(out), "--until", iso(100 * HOUR)]) == 0
    assert "requests: 1 lines have the score id of another line, and were not used" in capsys.readouterr().err
    assert read_hours(out)["ad"].to_list() == ["a"]


def test_unfinished_segments_hold_back_the_hours_that_they_may_belong_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [event("impression", score_id(1), 1), event("impression", score_id(2, 9 * HOUR), 9 * HOUR)]
    paths = write_logs(tmp_path, [request(1), request(2, 9 * HOUR)], events)
    unfinished = write_segment(tmp_path / "events", EVENTS, [b"anything"], 5, UNFINISHED)
    out = tmp_path / "joined"
    arguments = [*map(str, paths), "--out", str(out), "--lateness", "1h"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "unfinished: 1 files were not read" in printed.out
    assert f"hours are not final because of unfinished files, such as {unfinished}" in printed.err
    assert not list((out / "hours").iterdir())
    unfinished.unlink()
    assert main(arguments) == 0
    assert [path.name for path in (out / "hours").iterdir()] == ["2026-11-30T20.parquet"]


def test_events_that_were_received_just_before_their_segment_was_opened_are_waited_for(tmp_path: Path) -> None:
    shown_s, last_s = -1.5 * HOUR, -0.1  # ctr-collect opens a segment for events that it has already received
    events = [
        event("impression", score_id(1, shown_s), shown_s),
        event("impression", score_id(2, HOUR), HOUR),
    ]
    paths, out = write_logs(tmp_path, [request(1, shown_s)], events), tmp_path / "joined"
    click = event("click", score_id(1, shown_s), shown_s + 1, received_s=last_s)
    unfinished = write_segment(tmp_path / "events", EVENTS, [click], 5, UNFINISHED)
    arguments = [*map(str, paths), "--out", str(out), "--lateness", "30m"]  # the hour is final at 20:00
    assert main(arguments) == 0
    unfinished.rename(finished_name(unfinished))
    assert main(arguments) == 0
    assert read_hours(out)["click"].to_list() == [1]


def test_an_hour_that_differs_is_kept_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [event("impression", score_id(1), 1), event("click", score_id(1), 2)]
    paths, out = write_logs(tmp_path, [request(1)], events), tmp_path / "joined"
    arguments = [*map(str, paths), "--out", str(out), "--until", iso(100 * HOUR)]
    assert main(arguments) == 0
    before = (out / "hours" / "2026-11-30T20.parquet").read_bytes()
    assert main(arguments) == 0
    assert "hours: 0 written, 1 unchanged, 0 kept although different" in capsys.readouterr().out
    write_segment(tmp_path / "events", EVENTS, events[:1])
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "0 unchanged, 1 kept although different" in printed.out
    assert "hours: 1 files (2026-11-30T20) have other rows than these inputs give" in printed.err
    assert (out / "hours" / "2026-11-30T20.parquet").read_bytes() == before


def test_a_segment_is_marked_only_when_no_later_join_needs_it(tmp_path: Path) -> None:
    done = write_segment(tmp_path / "events", EVENTS, [event("impression", score_id(1), 1)], 1)
    recent = write_segment(tmp_path / "events", EVENTS, [event("click", score_id(1), 5 * HOUR)], 2)
    damaged = write_segment(tmp_path / "events", EVENTS, [b"{"], 3)
    log = write_segment(tmp_path / "log", REQUESTS, [request(1)])
    paths, out = [tmp_path / "log", tmp_path / "events"], tmp_path / "joined"
    assert not join(paths, out, SETTINGS).marked
    joined = join(paths, out, SETTINGS, mark_joined=True)
    assert joined.marked == [done.with_name(done.name + ".shipped")]
    assert not done.exists()
    assert recent.exists()
    assert damaged.exists()
    assert log.exists()
    assert not join(paths, out, SETTINGS).hours.kept
    joined.marked[0].unlink()
    assert not join(paths, out, SETTINGS).hours.kept
    assert read_hours(out)["click"].to_list() == [0]


def test_conversions_whose_sum_is_too_large_for_a_number_do_not_stop_the_join(tmp_path: Path) -> None:
    of = score_id(1)
    events = [event("conversion", of, 2, event_id=str(number), value=1.7e308) for number in range(3)]
    paths = write_logs(tmp_path, [request(1)], [event("impression", of, 1), *events])
    join(paths, tmp_path / "joined", SETTINGS, UNTIL_MS)
    (row,) = read_hours(tmp_path / "joined").rows(named=True)
    assert row["conversions"] == 3
    assert row["value"] == sys.float_info.max


def joined_rows(tmp_path: Path, line: bytes, rename: dict[str, str]) -> pl.DataFrame:
    paths, out = write_logs(tmp_path, [line], [event("impression", score_id(1), 1)]), tmp_path / "joined"
    join(paths, out, Settings(window_s=600, lateness_s=0, rename=rename), UNTIL_MS)
    return read_hours(out)


def test_a_feature_with_the_name_of_a_column_of_the_join_stops_it(tmp_path: Path) -> None:
    line = request(1, candidates=[{"ad": "a", "position": 9}])
    with pytest.raises(ValueError, match=f'request {score_id(1)}: .* both called "position".*--rename position='):
        joined_rows(tmp_path, line, {})
    table = joined_rows(tmp_path, line, {"position": "shown_at"})
    assert (table["position"].to_list(), table["shown_at"].to_list()) == (["9"], [None])
    shutil.rmtree(tmp_path / "joined")
    table = joined_rows(tmp_path, line, {"candidate.position": "slot"})
    assert (table["slot"].to_list(), table["position"].to_list()) == (["9"], [None])


def test_a_feature_on_both_sides_stops_the_join(tmp_path: Path) -> None:
    line = request(1, candidates=[{"ad": "a", "country": "TR"}], context={"country": "DE"})
    with pytest.raises(ValueError, match=r'both have a feature called "country".*--rename context\.country='):
        joined_rows(tmp_path, line, {})
    table = joined_rows(tmp_path, line, {"candidate.country": "ad_country"})
    assert (table["country"].to_list(), table["ad_country"].to_list()) == (["DE"], ["TR"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder. Name the folders of"),
        (["empty"], "empty: no segments. Their names end with .ndjson"),
        (["other"], 'web1.ndjson: the name of a segment begins with "requests-" or "events-"'),
        (["log", "--rename", "position"], "--rename position: expected OLD=NEW"),
        (["log", "--rename", "slot=place"], '"slot" is not a column of the join (time, unit, '),
        (["log", "--rename", "time=unit"], "--rename gives two columns of the join the same name"),
        (["log", "--until", "now"], "time 'now' must be an ISO 8601 time with a time zone"),
        (["log", "--out", "other"], "other is not empty and was not written by ctr-join"),
    ],
)
def test_wrong_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_segment(tmp_path / "log", REQUESTS, [request(1)])
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "web1.ndjson").touch()
    assert main(["--out", "joined", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_hours_with_other_settings_stop_the_join(tmp_path: Path) -> None:
    paths = write_logs(tmp_path, [request(1)], [event("impression", score_id(1), 1)])
    join(paths, tmp_path / "joined", SETTINGS, UNTIL_MS)
    other = Settings(window_s=60, lateness_s=HOUR)
    with pytest.raises(ValueError, match="with --window 600s --lateness 3600s, not with --window 60s --lateness 3600s"):
        join(paths, tmp_path / "joined", other, UNTIL_MS)


def test_an_hour_of_another_version_stops_the_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_logs(tmp_path, [request(1)], [event("impression", score_id(1), 1)])
    out = tmp_path / "joined"
    join(paths, out, SETTINGS, UNTIL_MS)
    (hour,) = (out / "hours").iterdir()
    arguments = [*map(str, paths), "--out", str(out), "--window", "600s", "--lateness", "1h"]
    for stored, message in (
        ('{"format":2,"window_s":600,"lateness_s":3600}', f"{hour} has format 2; this version reads 1"),
        ('{"format":2,"windows":[1]}', f"{hour} has format 2; this version reads 1"),
        ('{"window":600}', f"{hour}: its settings cannot be read"),
    ):
        pl.DataFrame({"a": [1]}).write_parquet(hour, metadata={"ctr-join": stored})
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PAR1" + bytes(100)])
def test_a_damaged_hour_stops_the_join(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    paths = write_logs(tmp_path, [request(1)], [event("impression", score_id(1), 1)])
    out = tmp_path / "joined"
    join(paths, out, SETTINGS, UNTIL_MS)
    (hour,) = (out / "hours").iterdir()
    hour.write_bytes(content)
    assert main([*map(str, paths), "--out", str(out), "--window", "600s", "--lateness", "1h"]) == 2
    assert f"{hour} is damaged" in capsys.readouterr().err


def test_a_disk_that_is_full_stops_the_join_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_logs(tmp_path, [request(1)], [event("impression", score_id(1), 1)])
    monkeypatch.setattr("model.loop.output.Output.publish", lambda *_: pl.DataFrame().write_parquet("/dev/full"))
    assert main([*map(str, paths), "--out", str(tmp_path / "joined")]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_a_segment_that_is_not_a_file_stops_the_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_logs(tmp_path, [request(1)], [event("impression", score_id(1), 1)])
    pipe = paths[1] / f"events-0{FINISHED}"
    os.mkfifo(pipe)  # Reading it would wait forever.
    assert main([*map(str, paths), "--out", str(tmp_path / "joined")]) == 2
    assert f"{pipe} is not a file" in capsys.readouterr().err


def test_a_segment_that_is_shipped_meanwhile_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_logs(tmp_path, [request(1)], [event("impression", score_id(1), 1)])

    def find_and_ship(found: Sequence[Path]) -> inputs.Inputs:
        segments = inputs.find_segments(found)
        for path in (*paths[0].iterdir(), *paths[1].iterdir()):
            path.rename(path.with_name(path.name.removesuffix(FINISHED) + SHIPPED))
        return segments

    monkeypatch.setattr("model.loop.join.find_segments", find_and_ship)
    joined = join(paths, tmp_path / "joined", SETTINGS, UNTIL_MS, mark_joined=True)
    assert read_hours(tmp_path / "joined").height == 1
    assert joined.marked == []


def test_a_segment_that_is_shipped_after_it_was_read_is_not_marked(tmp_path: Path) -> None:
    paths = write_logs(tmp_path, [request(1)], [event("impression", score_id(1), 1)])
    found = inputs.find_segments(paths)
    for path in paths[1].iterdir():
        path.rename(path.with_name(path.name.removesuffix(FINISHED) + SHIPPED))
    assert mark_segments(found, Rules(0, 0, UNTIL_MS)) == []


def test_a_second_join_into_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_logs(tmp_path, [request(1)], [event("impression", score_id(1), 1)])
    failures: list[str] = []

    def join_again(found: inputs.Inputs, folder: Path) -> inputs.Partitions:
        with pytest.raises(ValueError, match="another process is writing to this folder"):
            join(paths, tmp_path / "joined", SETTINGS)
        failures.append("refused")
        return inputs.partition(found, folder)

    monkeypatch.setattr("model.loop.join.partition", join_again)
    joined: Joined = join(paths, tmp_path / "joined", SETTINGS, UNTIL_MS)
    assert failures == ["refused"]
    assert joined.hours.written == ["2026-11-30T20"]


def test_the_delay_of_clicks_and_the_share_after_the_window_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [request(number) for number in range(10)]
    events = [event("impression", score_id(number), 0) for number in range(10)]
    events += [event("click", score_id(number), 100 * number) for number in range(1, 9)]
    paths, out = write_logs(tmp_path, lines, events), tmp_path / "joined"
    assert main([*map(str, paths), "--out", str(out), "--window", "10m", "--until", iso(100 * HOUR)]) == 0
    assert "click delay: p50 400.0 s, p90 800.0 s, p99 800.0 s; 25.00% of the clicks" in capsys.readouterr().out
    assert sorted(read_hours(out)["click_delay_s"].drop_nulls()) == [100, 200, 300, 400, 500, 600]


def test_late_events_are_written_by_the_hour_in_which_they_were_received(tmp_path: Path) -> None:
    events = [event("impression", score_id(1), 1), event("click", score_id(1), 2, received_s=5 * HOUR)]
    paths, out = write_logs(tmp_path, [request(1)], events), tmp_path / "joined"
    join(paths, out, SETTINGS, UNTIL_MS)
    late = pl.read_parquet(out / "late" / "2026-12-01T01.parquet")
    assert late.select("type", "score_id", "candidate").rows() == [("click", score_id(1), 0)]
    assert (late["received"] - late["time"]).dt.total_seconds().to_list() == [5 * HOUR - 2]
    assert read_hours(out)["click"].to_list() == [0]
