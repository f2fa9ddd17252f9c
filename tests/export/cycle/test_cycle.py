"""ctr-cycle on simulated days, with the real commands."""

import random
import re
import shutil
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import pytest

from export.cycle.state import read_state
from tests.support.days import FIRST_DAY, LIMITS, Site

DAY_1, DAY_2, DAY_3 = (FIRST_DAY + timedelta(days=number) for number in (1, 2, 3))
FIRST_STEPS = ("join", "prepare", "train", "calibrate", "export", "add")
STEPS = ("join", "score", "prepare", "train", "calibrate", "export", "gate", "add")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Return a site after its first day."""
    site = Site(tmp_path_factory.mktemp("first"))
    site.simulate(days=4, requests=1800)
    result = site.run(DAY_1)
    assert result.returncode == 0, result.stderr
    assert "training starts cold: no earlier day has a run whose version was added" in result.stdout
    report = site.report(DAY_1)
    assert (report["outcome"], report["served"], report["gate"], report["progressive"]) == ("added", "", None, None)
    assert site.check_store() == {report["version"]} == {site.served()}
    log = (site.day(DAY_1) / "export.log").read_text()
    assert f"scored requests from {DAY_1}T00:00:00Z to {DAY_2}T00:00:00Z in the request log in {site.folder}" in log
    return site


def copy_of(site: Site, folder: Path) -> Site:
    """Return a copy of a site. Its finished days stay finished."""
    shutil.copytree(site.folder, folder, symlinks=True)
    return Site(folder)


def kill_steps(site: Site, day: date, steps: Sequence[str], delays: Sequence[float]) -> int:
    """Kill a day in each step after each delay, and check the store after each kill. Return the number of kills.

    A step that was complete at an earlier kill does not begin again, so it is skipped.
    """
    before, killed = site.served(), 0
    for step in steps:
        for seconds in delays:
            if step in read_state(site.day(day) / "state.json").steps:
                break
            killed += site.run_until_killed(day, step, seconds)
            versions = site.check_store()
            assert before in {"", *versions}
            if (site.day(day) / "cycle.json").exists():
                return killed
            if step != "add":
                assert site.served() == before
    return killed


def check_same_end(disturbed: Site, undisturbed: Site, day: date) -> None:
    """Check that two sites have the same bytes, except for times."""
    assert disturbed.check_store() == undisturbed.check_store()
    assert disturbed.served() == undisturbed.served() == disturbed.report(day)["version"]
    found, expected = disturbed.contents(day), undisturbed.contents(day)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_a_day_that_was_killed_ends_like_an_undisturbed_one(first: Site, tmp_path: Path) -> None:
    site = copy_of(first, tmp_path / "a")
    shutil.rmtree(site.work)
    shutil.rmtree(site.store)
    assert kill_steps(site, DAY_1, ["prepare", "train", "export", "add"], [0.0]) >= 3
    result = site.run(DAY_1)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "train: complete, not repeated" in result.stdout or "already finished" in result.stdout
    check_same_end(site, first, DAY_1)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("day", "steps"), [(DAY_1, FIRST_STEPS), (DAY_2, STEPS)])
def test_a_day_that_was_killed_at_and_in_every_step_ends_like_an_undisturbed_one(
    first: Site, tmp_path: Path, day: date, steps: Sequence[str]
) -> None:
    rng = random.Random(1)
    disturbed = copy_of(first, tmp_path / "b")
    undisturbed = first if day == DAY_1 else copy_of(first, tmp_path / "a")  # a finished day names its own folder
    if day == DAY_1:
        shutil.rmtree(disturbed.work)
        shutil.rmtree(disturbed.store)
    else:
        result = undisturbed.run(day)
        assert result.returncode == 0, result.stdout + result.stderr
    assert kill_steps(disturbed, day, steps, [0.0, rng.uniform(0, 2), rng.uniform(1, 5)]) >= len(steps)
    result = disturbed.run(day)
    assert result.returncode == 0, result.stdout + result.stderr
    check_same_end(disturbed, undisturbed, day)


@pytest.mark.full
def test_a_day_is_gated_reported_and_run_once(first: Site, tmp_path: Path) -> None:
    site = copy_of(first, tmp_path / "a")
    old = site.served()

    # With a margin of almost nothing, a day has too few clicks to pass.
    strict = site.run(DAY_2, "--by", "slot", limits=("--margin", "0.0000001"))
    assert strict.returncode == 3, strict.stdout + strict.stderr
    report = site.report(DAY_2)
    assert (report["outcome"], report["activated"]) == ("not enough clicks", False)
    assert report["gate"]["reasons"]
    assert site.check_store() == {old} == {site.served()}
    assert "did not have enough clicks" in (site.day(DAY_2) / "cycle.md").read_text()

    again = site.run(DAY_2, "--by", "slot")
    assert again.returncode == 3
    assert "already finished" in again.stdout

    # Without its report, the day runs again. Only the gate has other arguments.
    (site.day(DAY_2) / "cycle.json").unlink()
    passed = site.run(DAY_2, "--by", "slot", "--keep", "1")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert set(re.findall("^(.*): complete, not repeated", passed.stdout, re.MULTILINE)) == {*STEPS} - {"gate", "add"}
    report = site.report(DAY_2)
    assert (report["served"], report["warm"], report["outcome"]) == (old, str(DAY_1), "added")
    assert report["version"] == site.served() != old
    assert report["progressive"]["version"] == old
    assert report["log"]["the day"]["rows"] == report["progressive"]["rows"] > 500
    assert list(report["steps"]) == list(STEPS)
    assert "slot" in (site.day(DAY_2) / "gate" / "gate.md").read_text()
    assert not (site.day(DAY_1) / "run").exists()
    assert (site.day(DAY_2) / "run").exists()
    assert f"removed {site.day(DAY_1)}/run" in passed.stdout

    # The next day is not final: its log ends too early.
    later = site.run(DAY_3, "--until", f"{DAY_3}T12:00:00Z")
    assert later.returncode == 4
    assert f"{DAY_3} is not final" in later.stderr
    assert "2026-12-06T00:30:00Z" in later.stderr


@pytest.mark.full
def test_a_changed_and_worse_experiment_trains_cold_and_replaces_nothing(first: Site, tmp_path: Path) -> None:
    site = copy_of(first, tmp_path / "a")
    old = site.served()
    good = site.experiment.read_text()
    site.experiment.write_text(good.replace('"lr"', '"fm"').replace("learning_rate = 0.02", "learning_rate = 1e-7"))
    result = site.run(DAY_2, limits=("--margin", "0.0001", "--tolerance", "0.9", "--segment-tolerance", "0.95"))
    assert result.returncode in (1, 3), result.stdout + result.stderr
    assert f"the experiment has changed since {DAY_1}" in result.stdout
    assert site.check_store() == {old} == {site.served()}
    # The next day starts from the last run that was accepted.
    site.experiment.write_text(good)
    result = site.run(DAY_3, limits=LIMITS)
    assert result.returncode == 0, result.stdout + result.stderr
    assert site.report(DAY_3)["warm"] == str(DAY_1)
