import asyncio
from pathlib import Path

from benchmarks.collect import Case, measure, running, two_cpus
from contract.segments import UNFINISHED


def test_the_measured_events_are_on_the_disk(tmp_path: Path) -> None:
    case = Case("", events=5, connections=2)
    with running(tmp_path, two_cpus()[0]) as server:
        measured = asyncio.run(measure(case, server, 0.5))
        stored = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob(f"*{UNFINISHED}"))
    assert measured.cpu_us > 0
    assert 1 <= measured.group_requests <= 2
    # What was sent during the warm-up is on the disk as well.
    assert 0 < measured.events_per_s * 0.5 <= stored
    assert stored % 5 == 0
