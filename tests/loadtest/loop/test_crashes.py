"""Nothing is lost when the service, ctr-collect and ctr-join are killed."""

from pathlib import Path

import pytest

from loadtest.loop.crashes import main
from tests.support.paths import ROOT

DEMO = str(ROOT / "deploy" / "demo")


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(3, marks=pytest.mark.timeout(600)),
        pytest.param(100, marks=[pytest.mark.full, pytest.mark.timeout(7200)]),
    ],
)
def test_each_acknowledged_event_is_joined_or_counted_exactly_once(
    tmp_path: Path, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bundle", DEMO, "--out", str(tmp_path / "out"), "--rounds", str(rounds)]) == 0
    assert "are as expected, exactly once" in capsys.readouterr().out
